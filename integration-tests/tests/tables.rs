//! Tables: each scenario of `fixtures/tables.py` in a node of its own.

use harness::{Project, scenarios};
use serde_json::json;

scenarios! {
    in "fixtures/tables.py";
    ets_001_a_table_goes_with_its_owner_before_anybody_hears_of_its_end,
    ets_001_a_name_has_one_table,
    ets_002_who_may_read_and_write_is_the_owner_s_choice,
    an_owner_may_be_another_actor_or_a_supervisor,
    ets_006_a_table_passes_to_its_heir_or_is_given_away,
    a_table_of_the_tree_outlives_the_actors_that_use_it,
    ets_003_how_many_values_a_key_has,
    ets_004_map_15_which_keys_are_the_same,
    keys_that_begin_alike_are_told_apart,
    what_is_no_key_or_no_value_is_named,
    values_are_copies_of_whatever_can_be_pickled,
    ets_005_every_change_is_done_whole_and_alone,
    changes_that_look_first,
    a_value_is_computed_once_for_all_who_ask,
    a_table_is_a_dictionary,
    ordered_keys_are_found_by_what_they_lie_between,
    rows_expire,
    a_table_may_have_a_limit_of_its_own,
    ets_007_a_walk_shows_what_was_there_throughout_once,
    a_snapshot_shows_one_moment,
    large_buffers_are_one_copy_that_is_read,
    rows_that_are_watched_tell_of_their_changes,
    watches_outlive_their_store,
    watches_outlive_a_recycling_and_nothing_is_missed,
    a_store_that_is_killed_is_replaced_and_nothing_is_lost,
    arrays_are_freed_when_nobody_looks_any_more_kills_included,
    arrays_outlive_their_store,
    a_store_that_is_stopped_is_replaced,
    what_was_acknowledged_is_there_after_a_kill,
    a_process_that_an_actor_forked_has_no_tables,
    threads_that_look_at_once_all_read,
    a_reader_that_is_killed_again_and_again_harms_nobody,
    a_snapshot_that_is_open_for_too_long_ends,
    an_actor_that_writes_rubbish_wherever_it_can_harms_no_table,
    ten_thousand_tables_come_and_go,
    an_actor_without_address_space_is_told_so,
    nothing_of_a_table_is_in_a_directory,
}

/// A tree with tables of each sort, and an owner of one.
const APP: &str = r#"
import datetime
import rebeam
from rebeam import Actor, Supervisor, Table, child

class Owner(Actor):
    def init(self):
        own = rebeam.table("own", kind="set")
        own["object"] = Owner
        own["plain"] = [1, {"a": (2,)}]

    def fill(self):
        t = rebeam.table("prices")
        t.update({"apple": 3, "pear": 2.5})
        t[("room", 1)] = {"when": datetime.date(2026, 1, 2), (1,): b"\x00", "huge": 2**100, "none": None}
        t[("room", 2)] = {1, 2}

tree = Supervisor([Table("prices", kind="ordered_set"), Table("copy", kind="ordered_set"), child(Owner, name="owner")])
"#;

#[test]
fn tables_are_shown_and_changed_on_the_command_line() {
    let project = Project::new(APP);
    let node = project.up();
    node.call("owner", "fill", &[]);
    let list = node.run(&["table", "ls"]).stdout;
    assert!(list.starts_with("TABLE") && list.lines().count() == 4, "{list}");
    let all = node.run(&["table", "ls", "--json"]).json();
    let prices = all.as_array().and_then(|all| all.iter().find(|it| it["name"] == "prices")).expect("it is there");
    assert_eq!(
        (&prices["kind"], &prices["access"], &prices["rows"]),
        (&json!("ordered_set"), &json!("public"), &json!(4))
    );
    assert_eq!(node.run(&["table", "get", "prices", "apple"]).stdout, "3\n");
    assert_eq!(node.run(&["table", "get", "prices", "[\"room\", 2]", "--json"]).json(), json!([1, 2]));
    node.run(&["table", "get", "prices", "plum"]).assert_error(1, &["nothing is under the key \"plum\""]);
    node.run(&["table", "get", "absent", "x"]).assert_error(1, &["there is no table `absent`", "rebeam table ls"]);
    assert_eq!(
        node.run(&["table", "show", "prices", "--json", "--limit", "2"]).json(),
        json!([["apple", 3], ["pear", 2.5]])
    );
    assert!(node.run(&["table", "show", "prices", "--limit", "1"]).stdout.contains("the first 1 rows"));
    assert_eq!(node.run(&["table", "show", "prices", "room", "2", "--json"]).json(), json!([[["room", 2], [1, 2]]]));
    assert_eq!(node.run(&["table", "put", "prices", "[\"room\", 3]", "{\"a\": [1]}"]).code, Some(0));
    assert_eq!(node.run(&["table", "get", "prices", "[\"room\", 3]"]).stdout, "{\"a\":[1]}\n");
    node.run(&["table", "put", "own", "a", "1"]).assert_error(1, &["`own` is its owner's to write to"]);
    // What is no plain data is named.
    node.run(&["table", "get", "own", "object"]).assert_error(1, &["is not plain data"]);
    node.run(&["table", "dump", "own"]).assert_error(1, &["what is under 'object' is not plain data", "`type`"]);
    let shown = node.run(&["table", "show", "own"]).stdout;
    assert!(shown.contains("<type>") && shown.contains("\"plain\""), "{shown}");
    assert_eq!(node.run(&["table", "get", "own", "plain"]).stdout, "[1,{\"a\":[2]}]\n");
    // Everything comes back as it was.
    let shell = |text: &str| {
        let text = text.replace("rebeam", &harness::rebeam().display().to_string());
        project.command_of("sh").args(["-c", &text]).output().expect("it runs")
    };
    let dumped = shell("rebeam table dump prices > rows && rebeam table load copy < rows && rebeam table dump copy");
    let rows = std::fs::read_to_string(project.path().join("rows")).expect("it was written");
    assert_eq!(String::from_utf8_lossy(&dumped.stdout), rows, "{dumped:?}");
    assert_eq!(rows.lines().count(), 5, "{rows}");
    let output = shell(r#"echo '[1, {"$bytes": 5}]' | rebeam table load copy"#);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("line 1 is no row"), "{output:?}");
    node.down();
}

#[test]
fn tables_are_reached_from_outside_with_plain_values() {
    let project = Project::new(APP);
    let node = project.up();
    node.call("owner", "fill", &[]);
    project.write(
        "outside.py",
        r#"
import datetime, rebeam
with rebeam.connect() as node:
    assert node.tables() == ["copy", "own", "prices"]
    for missing in (lambda: node.table("absent")["a"], lambda: node.table("absent").insert("a", 1)):
        try:
            missing()
        except rebeam.NoTable as error:
            assert "`absent`" in str(error), error
        else:
            raise AssertionError("it is there")
    try:
        node.table("own")["a"] = 1
    except rebeam.TableAccess:
        pass
    else:
        raise AssertionError("it is public")
    prices = node.table("prices")
    assert prices["apple"] == 3 and prices.get("plum", 7) == 7 and "pear" in prices and len(prices) == 4
    assert prices["room", 1]["when"] == datetime.date(2026, 1, 2) and prices["room", 2] == {1, 2}
    assert prices.prefix(("room",))[0][0] == ("room", 1) and prices.first() == "apple"
    prices["plum"] = {"new": (1, 2)}
    assert prices.pop("plum") == {"new": (1, 2)} and prices.update_counter("apple", 2) == 5
    prices.update(a=1, b=2)
    assert list(prices)[:2] == ["a", "apple"] and dict(prices)["b"] == 2
    for use, error in (
        (lambda: prices["plum"], KeyError),
        (lambda: node.table("absent")["x"], rebeam.RebeamError),
        (lambda: node.table("own").insert("x", 1), rebeam.RebeamError),
        (lambda: prices.insert("x", object()), TypeError),
        (lambda: prices.no_such_thing, AttributeError),
    ):
        try:
            use()
        except error as found:
            print(type(found).__name__, found)
        else:
            raise AssertionError(error)
"#,
    );
    let output = project.command_of(harness::python()).arg("outside.py").output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("there is no table `absent`") && text.contains("`own` is its owner's"), "{text}");
    node.down();
}

#[test]
fn tables_have_figures() {
    let project = Project::new(APP);
    let mut node = project.start(&["run", "app.py", "--http", "127.0.0.1:0"]);
    let line = node.wait_for("health and metrics at");
    let address =
        line.split_once("http://").and_then(|(_, rest)| rest.split_once('"')).expect("an address").0.to_owned();
    node.wait_for("up with");
    let value = |series: &str| -> f64 {
        let page = harness::http(&address, "GET /metrics", &[]).1;
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
        line.unwrap_or_else(|| panic!("no `{series}` in:\n{page}"))
    };
    assert_eq!((value("rebeam_tables"), value("rebeam_table_store_ends_total")), (3.0, 0.0));
    node.call("owner", "fill", &[]);
    assert!(value("rebeam_table_rows_bytes") > 4096.0);
    assert!(value("rebeam_own_memory_bytes{process=\"store\"}") > 10_000.0);
    node.down();
}

#[test]
fn a_store_that_dies_again_and_again_is_given_up_and_the_node_says_so() {
    let project = Project::new(APP);
    let node = project.up();
    node.call("owner", "fill", &[]);
    assert_eq!(node.run(&["health"]).code, Some(0));
    node.eventually("it is given up", |node| {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", node.os_pid())).ok()?;
        let is_store = |pid: &&str| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|byte| *byte == 0).nth(1) == Some(b"store")
        };
        if let Some(store) = children.split_whitespace().find(is_store) {
            harness::kill(store.parse().ok()?, nix::sys::signal::Signal::SIGKILL);
        }
        let health = node.run(&["health"]);
        (health.code != Some(0))
            .then(|| health.assert_error(1, &["tables: the process that keeps the rows is given up"]))
    });
    node.run(&["table", "put", "prices", "apple", "4"]).assert_error(1, &["has died too often"]);
    node.down();
}
