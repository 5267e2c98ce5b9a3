//! The JSON Schemas of the values in etcd, `docs/schemas/*.json`, generated from their types.

use expect_test::{ExpectFile, expect_file};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::{LogEntry, Override, Slot, Standby, Upstream};
use crate::BalancerRecord;

/// Removes what says nothing to a reader of JSON: the defaults of Rust's types. Its names of an absent value become JSON's.
pub(crate) fn tidy_schema(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.remove("default");
            if let Some(Value::String(text)) = fields.get_mut("description") {
                let words = text.replace("`None`", "None").replace('\n', " ");
                *text =
                    words.replace("None if", "null if").replace("None", "null").replace("[`", "`").replace("`]", "`");
            }
            for (keyword, value) in fields {
                match value {
                    // The names in here are fields, and one is called `default`.
                    Value::Object(properties) if keyword == "properties" => {
                        properties.values_mut().for_each(tidy_schema);
                    }
                    value => tidy_schema(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy_schema),
        _ => {}
    }
}

#[track_caller]
fn assert_schema<T: JsonSchema>(key: &str, file: &ExpectFile) {
    let mut schema =
        SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>().to_value();
    tidy_schema(&mut schema);
    schema["title"] = key.into();
    file.assert_eq(&(serde_json::to_string_pretty(&schema).unwrap() + "\n"));
}

#[test]
fn each_value_has_its_schema() {
    assert_schema::<Upstream>("upstreams/<id>", &expect_file!["../../../../docs/schemas/upstream.json"]);
    assert_schema::<Override>("overrides/<id>", &expect_file!["../../../../docs/schemas/override.json"]);
    assert_schema::<Slot>("slots/<n>", &expect_file!["../../../../docs/schemas/slot.json"]);
    assert_schema::<Standby>("standby/<id>", &expect_file!["../../../../docs/schemas/standby.json"]);
    assert_schema::<BalancerRecord>("balancers/<node>", &expect_file!["../../../../docs/schemas/balancer.json"]);
    assert_schema::<LogEntry>("log/<time>-<random>", &expect_file!["../../../../docs/schemas/log-entry.json"]);
}
