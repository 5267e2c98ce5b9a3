//! Writes and parses as much of XML-RPC as supervisord uses: scalars, and structs of scalars. Pure.

use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesRef, Event};

/// Formats a call. The parameters are XML already.
pub(super) fn format_call(method: &str, params: impl Iterator<Item = String>) -> String {
    let params: String = params.map(|param| format!("<param><value>{param}</value></param>")).collect();
    format!(
        "<?xml version=\"1.0\"?><methodCall><methodName>{method}</methodName><params>{params}</params></methodCall>"
    )
}

/// An answer: its scalars, each with the name of its struct member. The name is empty for a scalar by itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    fault: bool,
    fields: Vec<(String, String)>,
}

impl Reply {
    /// True if the answer refuses the call.
    pub(super) fn is_fault(&self) -> bool {
        self.fault
    }

    /// Finds the member of that name. An empty name finds a scalar by itself.
    pub(super) fn find_field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, text)| text.as_str())
    }

    /// Finds the number of that name. `None` if the member is missing or no number.
    pub(super) fn find_number(&self, name: &str) -> Option<i64> {
        self.find_field(name)?.parse().ok()
    }

    /// Parses an answer. `None` if the text is not XML-RPC.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut reader = Reader::from_str(text);
        let mut reply = Self { fault: false, fields: Vec::new() };
        let (mut name, mut text, mut response) = (String::new(), String::new(), false);
        loop {
            match reader.read_event().ok()? {
                Event::Start(tag) => {
                    text.clear();
                    match tag.name().as_ref() {
                        "methodResponse" => response = true,
                        "fault" => reply.fault = true,
                        _ => {}
                    }
                }
                Event::Text(part) => text.push_str(&part.xml10_content()),
                Event::CData(part) => text.push_str(&part.xml10_content()),
                Event::GeneralRef(reference) => text.push_str(&resolve_reference(&reference)?),
                Event::End(tag) => match tag.name().as_ref() {
                    "name" => name = std::mem::take(&mut text),
                    "int" | "i4" | "string" | "boolean" | "double" => {
                        reply.fields.push((std::mem::take(&mut name), std::mem::take(&mut text)));
                    }
                    "methodResponse" => return response.then_some(reply),
                    _ => {}
                },
                Event::Eof => return None,
                _ => {}
            }
        }
    }
}

fn resolve_reference(reference: &BytesRef<'_>) -> Option<String> {
    match reference.resolve_char_ref().ok()? {
        Some(character) => Some(character.to_string()),
        None => resolve_predefined_entity(&reference.xml10_content()).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_members_and_entities() {
        let text = "<?xml version='1.0'?>\n<methodResponse>\n<fault>\n<value><struct>\n<member>\n<name>faultCode</name>\n\
            <value><int>10</int></value>\n</member>\n<member>\n<name>faultString</name>\n\
            <value><string>BAD_NAME: a&lt;b &amp;&#65;</string></value>\n</member>\n</struct></value>\n</fault>\n\
            </methodResponse>\n";
        let reply = Reply::parse(text).unwrap();
        assert!(reply.is_fault());
        assert_eq!(reply.find_field("faultCode"), Some("10"));
        assert_eq!(reply.find_field("faultString"), Some("BAD_NAME: a<b &A"));
        assert_eq!(reply.find_field("pid"), None);
    }

    #[test]
    fn refuses_what_is_cut_or_foreign() {
        for text in ["", "<html>no</html>", "<methodResponse><params><param><value><int>1</int>", "<a></b>", "&nope;"] {
            assert_eq!(Reply::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn writes_calls() {
        let body = format_call("supervisor.stopProcess", ["<boolean>1</boolean>".to_owned()].into_iter());
        assert!(body.ends_with("<param><value><boolean>1</boolean></value></param></params></methodCall>"), "{body}");
    }
}
