//! The examples of RFC 7541 appendix C, and blocks that are none.

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let text: String = text.split_whitespace().collect();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn shown(field: &Field) -> String {
    match field {
        Field::Method(m) => format!(":method: {m}"),
        Field::Scheme(s) => format!(":scheme: {s}"),
        Field::Authority(a) => format!(":authority: {a}"),
        Field::Path(p) => format!(":path: {p}"),
        Field::Protocol(p) => format!(":protocol: {p:?}"),
        Field::Status(s) => format!(":status: {}", s.as_u16()),
        Field::Other(name, value) => format!("{name}: {}", value.to_str().unwrap()),
        Field::Malformed(_) => "?".to_owned(),
    }
}

fn fields(decoder: &mut Decoder, block: &str) -> Vec<String> {
    let mut all = Vec::new();
    decoder.decode(&hex(block), |field, _| all.push(shown(&field))).unwrap();
    all
}

#[test]
fn requests_without_and_with_coded_texts() {
    for blocks in [
        [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ],
        [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ],
    ] {
        let mut decoder = Decoder::new(TABLE);
        let first = [":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"];
        assert_eq!(fields(&mut decoder, blocks[0]), first);
        assert_eq!(decoder.size, 57);
        let second = [&first[..], &["cache-control: no-cache"]].concat();
        assert_eq!(fields(&mut decoder, blocks[1]), second);
        assert_eq!(decoder.size, 110);
        let third = [":method: GET", ":scheme: https", ":path: /index.html", first[3], "custom-key: custom-value"];
        assert_eq!(fields(&mut decoder, blocks[2]), third);
        assert_eq!(decoder.size, 164);
    }
}

#[test]
fn responses_that_evict() {
    for blocks in [
        [
            "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120
             474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "4803 3330 37c1 c0bf",
            "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738
             666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33
             3630 303b 2076 6572 7369 6f6e 3d31",
        ],
        [
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718
             63c7 8f0b 97c8 e9ae 82ae 43d3",
            "4883 640e ffc1 c0bf",
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7
             b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
        ],
    ] {
        let mut decoder = Decoder::new(TABLE);
        decoder.max = 256;
        let date = "date: Mon, 21 Oct 2013 20:13:21 GMT";
        let location = "location: https://www.example.com";
        assert_eq!(fields(&mut decoder, blocks[0]), [":status: 302", "cache-control: private", date, location]);
        assert_eq!(decoder.size, 222);
        assert_eq!(fields(&mut decoder, blocks[1]), [":status: 307", "cache-control: private", date, location]);
        assert_eq!(decoder.size, 222);
        assert_eq!(
            fields(&mut decoder, blocks[2]),
            [
                ":status: 200",
                "cache-control: private",
                "date: Mon, 21 Oct 2013 20:13:22 GMT",
                location,
                "content-encoding: gzip",
                "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
            ]
        );
        assert_eq!(decoder.size, 215);
    }
}

#[test]
fn what_is_not_to_be_indexed_stays_so_and_what_is_malformed_keeps_its_place() {
    let mut decoder = Decoder::new(TABLE);
    let mut all = Vec::new();
    // password: secret, never indexed; x-A: 1, indexed; the newest of the table; x-b: 2; both again.
    let block = "1008 7061 7373 776f 7264 0673 6563 7265 74 4003 782d 4101 31 be 4003 782d 6201 32 bf be";
    decoder.decode(&hex(block), |field, size| all.push((field, size))).unwrap();
    assert!(matches!(&all[0].0, Field::Other(_, value) if value.is_sensitive()));
    let kinds: Vec<String> = all.iter().map(|(field, _)| shown(field)).collect();
    assert_eq!(kinds, ["password: secret", "?", "?", "x-b: 2", "?", "x-b: 2"]);
    assert_eq!(all[1].1, 36);
}

#[test]
fn blocks_that_are_none() {
    for block in
        ["80", "be", "40", "4001", "400178", "82 20", "3fffffff07", "7fffffffffffffffff0f", "00823fff0178", "0a"]
    {
        assert_eq!(Decoder::new(TABLE).decode(&hex(block), |_, _| {}), Err(Garbled), "{block}");
    }
    // Smaller first, then as it was.
    assert!(fields(&mut Decoder::new(TABLE), "20 3fe11f 82").len() == 1);
}
