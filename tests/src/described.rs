//! Checks JSON against its descriptions in `docs/`: the answers of confgen's API, and the values in the store.
//!
//! It knows the keywords of JSON Schema that the descriptions use, and fails on any other one. Libraries for all of JSON Schema bring
//! some 30 more. A description lets clients meet new fields. Here it is closed, so that a field without a description fails a test.

use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::path::Path;
use std::sync::{LazyLock, Mutex};

use serde_json::{Map, Value};

use crate::SOURCE;
use crate::http::Response;

static API: LazyLock<Value> = LazyLock::new(|| read("docs/openapi.json"));
static SCHEMAS: Mutex<BTreeMap<String, &'static Value>> = Mutex::new(BTreeMap::new());

/// Checks a JSON answer of confgen's admin port against docs/openapi.json.
///
/// # Panics
/// If the description has no such path or status, or if the answer doesn't fit. The message names path and field.
#[track_caller]
pub(crate) fn check_answer(target: &str, answer: &Response) {
    if !answer.header("content-type").is_some_and(|kind| kind.starts_with("application/json")) {
        return;
    }
    let path = target.split('?').next().unwrap_or_default();
    let schema = find_schema(path, answer.status);
    let schema = schema.unwrap_or_else(|| panic!("docs/openapi.json has no answer {} of {path}", answer.status));
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{target}: {error}"));
    if let Err(error) = (Schemas { root: &API }).check(schema, &body, "") {
        panic!("{target} is not as docs/openapi.json has it: {error}");
    }
}

/// Checks a value against `docs/schemas/NAME.json`.
///
/// # Panics
/// If the value doesn't fit. The message names the field.
#[track_caller]
pub fn check_value(name: &str, value: &Value) {
    let file = format!("docs/schemas/{name}.json");
    let root = *SCHEMAS.lock().unwrap().entry(file.clone()).or_insert_with(|| &*Box::leak(Box::new(read(&file))));
    if let Err(error) = (Schemas { root }).check(root, value, "") {
        panic!("{value} is not as {file} has it: {error}");
    }
}

fn read(file: &str) -> Value {
    let text = read_to_string(Path::new(SOURCE).join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The schema of an answer. A path without a description has the answer of no path.
fn find_schema(path: &str, status: u16) -> Option<&'static Value> {
    let paths = API["paths"].as_object()?;
    let fits = |template: &str| {
        let (own, other) = (path.split('/'), template.split('/'));
        own.clone().count() == other.clone().count()
            && own.zip(other).all(|(word, part)| word == part || part.starts_with('{'))
    };
    // A path that is written out comes before one with a parameter.
    let described = paths.get(path).or_else(|| paths.iter().find(|(template, _)| fits(template)).map(|(_, it)| it));
    match described {
        Some(path) => path["get"]["responses"][status.to_string()]["content"].get("application/json")?.get("schema"),
        None => (status == 404).then(|| &API["components"]["schemas"]["Error"]),
    }
}

/// Keywords that say nothing about which values fit.
const REMARKS: [&str; 10] = [
    "$schema",
    "$defs",
    "title",
    "description",
    "format",
    "default",
    "examples",
    "uniqueItems",
    "components",
    "required",
];

/// Schemas with the document that their references lead into.
struct Schemas {
    root: &'static Value,
}

impl Schemas {
    /// The error names the field, as `/upstreams/3/weight`.
    fn check(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let Value::Object(keywords) = schema else {
            return if schema == &Value::Bool(false) { Err(format!("{at}: nothing may be here")) } else { Ok(()) };
        };
        let wrong = |what: &str| Err(format!("{at}: {value} {what}"));
        for (keyword, wanted) in keywords {
            let fits = match keyword.as_str() {
                "type" => list(wanted).iter().any(|name| is_of_type(value, name.as_str().unwrap_or_default())),
                "const" => value == wanted,
                "enum" => list(wanted).contains(value),
                "minimum" => value.as_f64().is_none_or(|number| wanted.as_f64().is_some_and(|least| number >= least)),
                "maximum" => value.as_f64().is_none_or(|number| wanted.as_f64().is_some_and(|most| number <= most)),
                "minItems" => value.as_array().is_none_or(|items| wanted.as_u64() <= Some(items.len() as u64)),
                "maxItems" => value.as_array().is_none_or(|items| wanted.as_u64() >= Some(items.len() as u64)),
                "anyOf" | "oneOf" => list(wanted).iter().any(|schema| self.check(schema, value, at).is_ok()),
                "$ref" => {
                    self.check(self.follow(wanted), value, at)?;
                    true
                }
                "items" => {
                    self.check_items(wanted, value, at)?;
                    true
                }
                "properties" | "additionalProperties" => {
                    self.check_fields(keywords, value, at)?;
                    true
                }
                known if REMARKS.contains(&known) => true,
                unknown => panic!("this test knows no keyword {unknown}"),
            };
            if !fits {
                return wrong(&format!("does not fit {keyword} {wanted}"));
            }
        }
        Ok(())
    }

    fn follow(&self, reference: &Value) -> &'static Value {
        let pointer = reference.as_str().and_then(|reference| reference.strip_prefix('#'));
        let found = pointer.and_then(|pointer| self.root.pointer(pointer));
        found.unwrap_or_else(|| panic!("{reference} leads nowhere"))
    }

    fn check_items(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().enumerate().try_for_each(|(index, item)| self.check(schema, item, &format!("{at}/{index}")))
    }

    fn check_fields(&self, schema: &Map<String, Value>, value: &Value, at: &str) -> Result<(), String> {
        let Value::Object(fields) = value else { return Ok(()) };
        let required = schema.get("required").map(list).unwrap_or_default();
        if let Some(missing) = required.iter().find(|name| !fields.contains_key(name.as_str().unwrap_or_default())) {
            return Err(format!("{at}: {missing} is missing"));
        }
        let described = schema.get("properties").and_then(Value::as_object);
        for (name, field) in fields {
            let own = described.and_then(|described| described.get(name));
            let Some(schema) = own.or_else(|| schema.get("additionalProperties")) else {
                return Err(format!("{at}: {name} has no description"));
            };
            self.check(schema, field, &format!("{at}/{name}"))?;
        }
        Ok(())
    }
}

/// A keyword's list, or its one value as a list.
fn list(wanted: &Value) -> &[Value] {
    wanted.as_array().map_or(std::slice::from_ref(wanted), Vec::as_slice)
}

fn is_of_type(value: &Value, name: &str) -> bool {
    match value {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::Number(number) => name == "number" || name == "integer" && (number.is_i64() || number.is_u64()),
        Value::String(_) => name == "string",
        Value::Array(_) => name == "array",
        Value::Object(_) => name == "object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(status: u16, body: &Value) -> Response {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Response { status, headers, body: body.to_string(), certificate: None }
    }

    fn quarantine() -> Value {
        json!({"identity": {"node": "a", "cluster": null, "prefix": "/b", "instance": "c"}, "quarantine": {"k": "why"}})
    }

    #[test]
    fn an_answer_that_fits_passes() {
        check_answer("/api/v1/quarantine", &answer(200, &quarantine()));
        let refusal = json!({"identity": quarantine()["identity"], "error": "no such path"});
        check_answer("/api/v1/nothing", &answer(404, &refusal));
        check_answer("/api/v1/services/http-no?x=1", &answer(404, &refusal));
        check_value("override", &json!({"state": "drain", "weight": 256}));
    }

    #[test]
    #[should_panic(expected = "/quarantine/k: 7 does not fit type \"string\"")]
    fn a_value_of_another_type_is_found() {
        let mut wrong = quarantine();
        wrong["quarantine"]["k"] = 7.into();
        check_answer("/api/v1/quarantine", &answer(200, &wrong));
    }

    #[test]
    #[should_panic(expected = "/identity: further has no description")]
    fn a_field_without_a_description_is_found() {
        let mut wrong = quarantine();
        wrong["identity"]["further"] = true.into();
        check_answer("/api/v1/quarantine", &answer(200, &wrong));
    }

    #[test]
    #[should_panic(expected = "\"instance\" is missing")]
    fn a_missing_field_is_found() {
        let mut wrong = quarantine();
        wrong["identity"].as_object_mut().unwrap().remove("instance");
        check_answer("/api/v1/quarantine", &answer(200, &wrong));
    }

    #[test]
    #[should_panic(expected = "has no answer 200 of /api/v1/nothing")]
    fn a_path_without_a_description_is_found() {
        check_answer("/api/v1/nothing", &answer(200, &quarantine()));
    }

    #[test]
    #[should_panic(expected = "/weight: 300 does not fit")]
    fn a_value_out_of_range_is_found() {
        check_value("override", &json!({"weight": 300}));
    }
}
