//! The JSON Schema of the config file, `docs/schemas/announcer.json`, generated from its type. Editors check announcer.toml with it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::Content;

/// A text or a number.
#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[allow(dead_code, reason = "only its schema counts")]
pub(crate) enum Scalar {
    Text(String),
    Number(i64),
}

/// One value, or a list of values.
#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[allow(dead_code, reason = "only its schema counts")]
pub(crate) enum OneOrSeveral {
    One(Scalar),
    Several(Vec<Scalar>),
}

/// Settings by their names.
pub(crate) type Pairs = BTreeMap<String, Scalar>;

/// Removes the defaults of Rust's types, which announcer doesn't use. `announcer --help` shows its own defaults.
fn remove_defaults(schema: &mut Value) {
    match schema {
        Value::Object(keywords) => {
            keywords.remove("default");
            keywords.values_mut().for_each(remove_defaults);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_defaults),
        _ => {}
    }
}

#[test]
fn the_file_has_its_schema() {
    let schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Content>();
    let mut schema = schema.to_value();
    remove_defaults(&mut schema);
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    expect_test::expect_file!["../../../../../docs/schemas/announcer.json"].assert_eq(&text);
}
