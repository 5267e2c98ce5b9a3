//! docs/openapi.json: the admin port's paths, written here, and the answers' schemas, generated from their types.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::super::*;
use crate::BalancerRecord;
use crate::record::tidy_schema;

/// The query of `/api/v1/changes`.
fn changes_query() -> Value {
    json!([
        query("service", "The service, as its section is called", json!({"type": "string", "examples": ["http-shop"]})),
        query("since", "Changes from this time on, RFC 3339 in UTC", json!({"type": "string", "format": "date-time"})),
        query(
            "keys",
            "`settings` leaves records of upstreams out",
            json!({"enum": ["all", "settings"], "default": "all"})
        ),
        query(
            "limit",
            "The most changes, the newest of them",
            json!({"type": "integer", "minimum": 1, "maximum": 10_000, "default": 1_000}),
        ),
    ])
}

fn query(name: &str, description: &str, schema: Value) -> Value {
    let mut parameter = json!({"name": name, "in": "query", "description": description});
    parameter["schema"] = schema;
    parameter
}

fn json_answer(description: &str, schema: &str) -> Value {
    let reference = json!({"$ref": format!("#/components/schemas/{schema}")});
    json!({"description": description, "content": {"application/json": {"schema": reference}}})
}

fn text_answer(description: &str) -> Value {
    json!({"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}})
}

/// A path below `/api/v1` with a JSON answer. `refusals` are the statuses whose answer is an `Error`.
fn api_path(summary: &str, answer: &str, parameters: Value, refusals: &[(&str, &str)]) -> Value {
    let mut responses = Map::from_iter([("200".to_owned(), json_answer(summary, answer))]);
    responses.extend(refusals.iter().map(|(status, words)| ((*status).to_owned(), json_answer(words, "Error"))));
    let mut operation = json!({"summary": summary, "responses": responses});
    operation["parameters"] = parameters;
    json!({ "get": operation })
}

fn probe(summary: &str, well: &str, ill: &str) -> Value {
    json!({"get": {"summary": summary, "responses": {"200": text_answer(well), "503": text_answer(ill)}}})
}

fn metrics(summary: &str) -> Value {
    let text = || json!({"schema": {"type": "string"}});
    let formats = json!({
        "text/plain; version=0.0.4": text(),
        "application/openmetrics-text; version=1.0.0": text(),
    });
    json!({"get": {"summary": summary, "responses": {"200": {"description": "By the request's `Accept`", "content": formats}}}})
}

fn paths() -> Value {
    let none = || json!([]);
    let id = json!([{"name": "id", "in": "path", "required": true, "description": "The name of its section",
                     "schema": {"type": "string", "examples": ["http-shop", "tcp-db"]}}]);
    let service =
        json!([query("service", "Only this service's", json!({"type": "string", "examples": ["http-shop"]}))]);
    let refusals = [("400", "The query can't be read"), ("500", "The log of changes can't be read")];
    json!({
        "/live": probe("Liveness", "confgen's loop turns", "It has not turned for 10 s"),
        "/ready": probe("Readiness", "HAProxy runs what the store asks for", "The reason why it doesn't"),
        "/metrics": metrics("Metrics"),
        "/metrics/upstreams": metrics("Color and host of each server, as metrics"),
        "/api/v1/openapi.json": {"get": {"summary": "This description", "responses": {"200": {
            "description": "OpenAPI 3.1", "content": {"application/json": {"schema": {"type": "object"}}}}}}},
        "/api/v1/status": api_path("The balancer at a glance", "Status", none(), &[]),
        "/api/v1/services": api_path("All services, without their upstreams", "Services", none(), &[]),
        "/api/v1/services/{id}":
            api_path("One service with its upstreams", "ServiceInFull", id, &[("404", "There is no such service")]),
        "/api/v1/upstreams": api_path("All upstreams, or those of one service", "Upstreams", service, &[]),
        "/api/v1/quarantine": api_path("Keys that are not followed, and why", "Quarantine", none(), &[]),
        "/api/v1/balancer": api_path("What `balancers/<node>` says, its lists whole", "BalancerRecord", none(), &[]),
        "/api/v1/certificates": api_path("Certificates by file and by host", "Certificates", none(), &[]),
        "/api/v1/history": api_path("The last 200 acts, newest first", "History", none(), &[]),
        "/api/v1/problems": api_path("What isn't right, in the order of harm", "Problems", none(), &[]),
        "/api/v1/changes": api_path("Changes of keys, oldest first", "Changes", changes_query(), &refusals),
    })
}

/// The schemas of the answers and of their parts, by the types' names.
fn schemas() -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut generator = settings.with(|it| it.definitions_path = "/components/schemas".into()).into_generator();
    generator.subschema_for::<Identity>();
    let answers = [
        ("BalancerRecord", generator.subschema_for::<BalancerRecord>()),
        ("Certificates", generator.subschema_for::<Certificates>()),
        ("Changes", generator.subschema_for::<Changes>()),
        ("History", generator.subschema_for::<History>()),
        ("Problems", generator.subschema_for::<Problems>()),
        ("Quarantine", generator.subschema_for::<Quarantine>()),
        ("ServiceInFull", generator.subschema_for::<ServiceInFull>()),
        ("Services", generator.subschema_for::<Services>()),
        ("Status", generator.subschema_for::<Status>()),
        ("Upstreams", generator.subschema_for::<Upstreams>()),
    ];
    let mut schemas = generator.take_definitions(true);
    let error = json!({"description": "A refusal", "type": "object", "required": ["error"],
                       "properties": {"error": {"description": "The reason, for people", "type": "string"}}});
    schemas.insert("Error".to_owned(), error);
    for name in answers.iter().map(|(name, _)| *name).chain(["Error"]) {
        let answer = schemas.get_mut(name).unwrap();
        answer["properties"]["identity"] = json!({"$ref": "#/components/schemas/Identity"});
        answer["required"].as_array_mut().unwrap().insert(0, "identity".into());
    }
    schemas.values_mut().for_each(tidy_schema);
    schemas
}

#[test]
fn the_description_has_every_answer() {
    let description = "confgen's admin port. It shows and changes nothing. docs/api.md says more.\n\nNames stay, and new ones may \
                       come. Believe an answer only if its `identity` names the balancer and the store that you asked.";
    let document = json!({
        "openapi": "3.1.0",
        "info": {"title": "haproxy-discover: a balancer's API", "version": "1", "description": description,
                 "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "servers": [{"url": "http://127.0.0.1:9101"}],
        // On loopback no token is asked for unless --admin-token-file is given.
        "security": [{}, {"token": []}],
        "paths": paths(),
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "--admin-token-file"}},
        },
    });
    let text = serde_json::to_string_pretty(&document).unwrap() + "\n";
    expect_test::expect_file!["../../../../../../docs/openapi.json"].assert_eq(&text);
}
