//! Which crate of the workspace does its work with which of the packages that the product is built on.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

const REQUIRED: [&str; 9] = [
    "async-trait",
    "figment",
    "hyper",
    "metrics",
    "metrics-exporter-prometheus",
    "serde",
    "tokio",
    "tokio-tungstenite",
    "toml",
];

#[test]
fn every_required_package_is_a_direct_dependency_where_it_does_its_job() {
    let metadata = MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .no_deps()
        .exec()
        .unwrap();
    let mut users: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let products = [
        "chinwag",
        "chinwag-auth",
        "chinwag-core",
        "chinwag-transports",
    ];
    for package in &metadata.packages {
        let Some(name) = products
            .into_iter()
            .find(|name| *name == package.name.as_str())
        else {
            continue;
        };
        for dependency in &package.dependencies {
            let required = REQUIRED.into_iter().find(|name| *name == dependency.name);
            if let (Some(required), DependencyKind::Normal) = (required, dependency.kind) {
                users.entry(required).or_default().insert(name);
            }
        }
    }
    let lines: Vec<String> = users
        .iter()
        .map(|(required, users)| {
            let users: Vec<&str> = users.iter().copied().collect();
            format!("{required}: {}", users.join(", "))
        })
        .collect();
    assert_eq!(
        lines,
        [
            "async-trait: chinwag, chinwag-auth, chinwag-core, chinwag-transports",
            "figment: chinwag",
            "hyper: chinwag, chinwag-auth, chinwag-transports",
            "metrics: chinwag, chinwag-core",
            "metrics-exporter-prometheus: chinwag",
            "serde: chinwag, chinwag-auth, chinwag-core, chinwag-transports",
            "tokio: chinwag, chinwag-auth, chinwag-core, chinwag-transports",
            "tokio-tungstenite: chinwag-transports",
            "toml: chinwag",
        ]
    );
}
