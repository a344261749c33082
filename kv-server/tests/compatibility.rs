//! Holds docs/COMPATIBILITY.md against the .proto files and the paths of the gateway: every call and every field of a request
//! has a row, and no row speaks of what is not there.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it must be"
)]

use std::collections::{BTreeMap, BTreeSet};

use kv_server::pb::DESCRIPTORS;
use kv_server::server::JSON_ROUTES;
use prost_reflect::{DescriptorPool, Kind, MessageDescriptor};

const PAGE: &str = include_str!("../../docs/COMPATIBILITY.md");
/// Packages of etcd's API; others are not for its clients, or have no fields to speak of.
const PACKAGES: [&str; 3] = ["etcdserverpb", "v3lockpb", "v3electionpb"];

#[derive(Debug)]
struct Row {
    state: &'static str,
    note: &'static str,
}

/// The rows that name one call or one field.
fn rows() -> BTreeMap<&'static str, Row> {
    let mut rows = BTreeMap::new();
    for line in PAGE.lines() {
        let Some((name, rest)) = line
            .strip_prefix("| `")
            .and_then(|line| line.split_once('`'))
        else {
            continue;
        };
        let is_name = |part: &str| part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let parts: Vec<&str> = name.split('.').collect();
        if parts.len() != 2 || !parts.into_iter().all(is_name) {
            continue;
        }
        let cells: Vec<&str> = rest.split('|').map(str::trim).collect();
        let [_, state, note, _] = cells[..] else {
            panic!("{line}: expected three columns");
        };
        let before = rows.insert(name, Row { state, note });
        assert!(before.is_none(), "{name} has two rows");
    }
    rows
}

fn add_fields(message: &MessageDescriptor, names: &mut BTreeSet<String>) {
    for field in message.fields() {
        let is_new = names.insert(format!("{}.{}", message.name(), field.name()));
        if let Kind::Message(inner) = field.kind()
            && is_new
        {
            add_fields(&inner, names);
        }
    }
}

/// `Service.Call` and `Message.field` of all that a client can ask.
fn names() -> (BTreeSet<String>, BTreeSet<String>) {
    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    let (mut calls, mut fields) = (BTreeSet::new(), BTreeSet::new());
    for service in pool.services() {
        if PACKAGES.contains(&service.package_name()) {
            for method in service.methods() {
                calls.insert(format!("{}.{}", service.name(), method.name()));
                add_fields(&method.input(), &mut fields);
            }
        }
    }
    (calls, fields)
}

#[test]
fn page_names_each_call_and_each_field_and_nothing_else() {
    let rows = rows();
    let (calls, fields) = names();
    assert!(
        calls.len() > 30 && fields.len() > 80,
        "{} {}",
        calls.len(),
        fields.len()
    );
    let known: BTreeSet<&str> = calls.iter().chain(&fields).map(String::as_str).collect();
    let named: BTreeSet<&str> = rows.keys().copied().collect();
    let missing: Vec<_> = known.difference(&named).collect();
    assert!(missing.is_empty(), "without a row: {missing:?}");
    for (name, row) in rows {
        match row.state {
            "yes" => assert!(known.contains(name), "{name} does not exist"),
            "differs" => {
                assert!(known.contains(name), "{name} does not exist");
                assert!(!row.note.is_empty(), "{name} differs, but in what?");
            }
            "not yet" => assert!(!row.note.is_empty(), "{name}: what is answered?"),
            other => panic!("{name}: {other:?} is no state"),
        }
    }
}

#[test]
fn page_has_each_path_of_the_gateway_beside_its_call() {
    let rows = rows();
    let mut count = 0;
    for (path, method) in JSON_ROUTES {
        let name = method.rsplit(['.', '/']).take(2).collect::<Vec<_>>();
        let row = &rows[format!("{}.{}", name[1], name[0]).as_str()];
        assert!(row.note.contains(&format!("`{path}`")), "{path}: {row:?}");
        count += 1;
    }
    assert_eq!(
        count,
        PAGE.matches("`/v3/").count() - PAGE.matches("`/v3/`").count()
    );
}
