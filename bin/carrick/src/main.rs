//! `carrick`: the control plane and the tool of people.

fn main() -> std::process::ExitCode {
    carrick_ctl::main()
}
