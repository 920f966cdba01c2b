//! The command with one more policy.

use std::process::Command;

fn run(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_own-polykv"))
        .args(arguments)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[test]
fn it_knows_its_own_policy_and_all_others() {
    let plan = concat!(env!("CARGO_MANIFEST_DIR"), "/plan.yaml");
    let (done, said) = run(&["plan", "show", plan]);
    assert!(done && said.contains("strided"), "{said}");
    let (done, said) = run(&["eval", "--help"]);
    assert!(done, "{said}");
    let (done, said) = run(&[
        "generate", "-m", "none", "-p", "a", "--policy", "no-such", "--budget", "8",
    ]);
    assert!(
        !done && said.contains("strided") && said.contains("tova"),
        "{said}"
    );
}
