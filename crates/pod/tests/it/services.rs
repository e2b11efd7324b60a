//! Services from pods and from the host, by name and by address, and the machine's own objects.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde_json::json;

use crate::machine::{Machine, eventually, fetch, on_a_host, ready, server};

async fn on_host(script: &str) -> (Option<i32>, String) {
    let output = tokio::process::Command::new("sh").args(["-c", script]).output().await.unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn services_have_addresses_and_names() {
    on_a_host(async {
        let machine = Machine::new(5).await;
        machine.namespace("shop", json!({})).await;
        machine.namespace("other", json!({})).await;
        let cluster_ip = machine.service("shop", "web", 80, 8080).await.to_string();
        // Without endpoints: refused, at once.
        eventually("the name is known", async || !machine.dns()["services"]["web.shop"].is_null()).await;
        let (code, said) = on_host(&fetch(&cluster_ip, 80)).await;
        assert_ne!(code, Some(0), "{said}");

        let mut web = machine.run("shop", "web", &server(8080, "web here")).port(8080).start();
        let pods = machine.pods("shop");
        eventually("web is ready", async || pods.get_opt("web").await.unwrap().is_some_and(|pod| ready(&pod))).await;
        eventually("the host reaches it by address", async || on_host(&fetch(&cluster_ip, 80)).await.1 == "web here")
            .await;
        let hosts = std::fs::read_to_string(machine.host.hosts_file.as_ref().unwrap()).unwrap();
        assert!(hosts.contains(&format!("{cluster_ip}\tweb.shop.svc.cluster.local\n")), "{hosts}");

        // By every form of the name, and by address.
        for (namespace, host) in [
            ("shop", "web"),
            ("other", "web.shop"),
            ("other", "web.shop.svc"),
            ("other", "web.shop.svc.cluster.local"),
            ("other", cluster_ip.as_str()),
        ] {
            let script = format!("test \"$({})\" = 'web here' && exit 4", fetch(host, 80));
            let (code, output) = machine.run(namespace, "client", &script).output().await;
            assert_eq!(code, Some(4), "{host} from {namespace}: {output}");
        }
        // A pod that calls its own service, and the API's. (The bare name of a pod is its own host name, and so its own address.)
        let own = carrick_pod::exec(carrick_pod::ExecOptions {
            pod: "web".into(),
            namespace: "shop".into(),
            command: vec![
                "sh".into(),
                "-c".into(),
                format!("test \"$({})\" = 'web here' && exit 6", fetch("web.shop", 80)).into(),
            ],
            env: Vec::new(),
            data_dir: machine.data.path().to_owned(),
        });
        assert_eq!(own.await.unwrap(), 6);
        let api = "exec 3<>/dev/tcp/kubernetes.default/443 && exit 8";
        let api = machine.run("other", "client", &format!("bash -c '{api}'"));
        let (code, output) = api.output().await;
        assert_eq!(code, Some(8), "{output}");

        // Gone with the pod.
        web.start_kill().unwrap();
        web.wait().await.unwrap();
        eventually("web's endpoint is gone", async || on_host(&fetch(&cluster_ip, 80)).await.0 != Some(0)).await;

        eventually("web is swept", async || machine.folders() == 0).await;

        let nodes: Api<Node> = Api::all(machine.client.clone());
        let node = nodes.get("node-5").await.unwrap();
        let conditions = node.status.unwrap().conditions.unwrap();
        assert!(conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"));
        let leases: Api<Lease> = Api::namespaced(machine.client.clone(), "kube-node-lease");
        eventually("the node's lease", async || leases.get_opt("node-5").await.unwrap().is_some()).await;
        machine.end().await;
    });
}
