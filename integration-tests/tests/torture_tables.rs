//! Tables whose readers are killed and stopped, and whose store is killed and stopped: nothing is torn, nothing is lost.
//!
//! `REBEAM_TORTURE_S` says for how many seconds (`make torture-tables`: ten minutes), `REBEAM_TORTURE_SEED` repeats what
//! was done to whom.

use harness::{Project, fixture};
use serde_json::Value;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
#[expect(clippy::print_stderr, reason = "figures, and the seed of a run that fails")]
fn readers_and_stores_that_are_killed_and_stopped_cost_nothing() {
    let seconds = number("REBEAM_TORTURE_S", 30);
    let seed = number("REBEAM_TORTURE_SEED", std::process::id().into());
    let project = Project::new(&fixture("fixtures/torture_tables.py"));
    let node = project.up_with(&["up", "app.py", "--no-reload"]);
    let call = |name: &str, method: &str, args: &[&str]| -> Value {
        let timeout = (seconds + 120).to_string();
        let ran = project.run(&[&["call", "--json", "--timeout", &timeout, name, method], args].concat());
        assert_eq!(ran.code, Some(0), "seed {seed}: {ran:?}");
        ran.json()
    };
    for writer in ["writer0", "writer1"] {
        assert_eq!(node.run(&["cast", writer, "fill"]).code, Some(0));
    }
    let calm = call("calm", "p99", &["2"]);
    let (done, attacked) = std::thread::scope(|scope| {
        let wrecker = scope.spawn(|| call("wrecker", "run", &[&seconds.to_string(), &seed.to_string()]));
        let attacked = call("calm", "p99", &[&(seconds - 1).to_string()]);
        (wrecker.join().expect("it wrecks"), attacked)
    });
    let files = call("teller", "files", &[]);
    let steps: u64 = ["writer0", "writer1"].iter().filter_map(|it| call(it, "finish", &[]).as_u64()).sum();
    let looks = call("teller", "looks", &[]);
    eprintln!(
        "seed {seed}: {done}, {steps} changes, {looks} looks at everything, p99 of a read {attacked:.1} µs beside {calm:.1} µs, \
         files {files}"
    );
    let violations = std::fs::read_to_string(project.path().join("violations")).unwrap_or_default();
    assert_eq!(violations, "", "seed {seed}");
    assert!(steps > 1000 && looks.as_u64() > Some(10), "seed {seed}: nothing happened");
    assert!(["killed", "stopped", "stores"].iter().all(|what| done[what].as_u64() > Some(0)), "seed {seed}: {done}");
    // Readers that are stopped hold for seconds what is there, and no longer.
    assert!(files["rebeam-rows"].as_u64() < Some(1 << 30), "seed {seed}: {files}");
    assert!(files["rebeam-arrays"].as_u64() < Some(1 << 30), "seed {seed}: {files}");
    node.down();
    project.assert_nothing_left();
}
