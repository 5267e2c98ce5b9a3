//! Keys, as a person presses them. They work in pages without script too.

use serde_json::json;

use super::Browser;

/// The name of a key that isn't a character, its code as Windows has it, and the text that it types.
const NAMED: [(&str, u32, &str); 3] = [("Enter", 13, "\r"), ("Escape", 27, ""), ("Tab", 9, "")];

impl Browser {
    /// Types a text, a key for each character, into what has the focus.
    #[track_caller]
    pub fn type_text(&self, text: &str) {
        for key in text.chars().map(String::from) {
            self.press_key(&key, 0, &key);
        }
    }

    /// Presses `Enter`, `Escape` or `Tab`.
    ///
    /// # Panics
    /// If it is another one.
    #[track_caller]
    pub fn press(&self, name: &str) {
        let (name, code, text) = NAMED.into_iter().find(|(known, ..)| *known == name).expect("a key's name");
        self.press_key(name, code, text);
    }

    fn press_key(&self, key: &str, code: u32, text: &str) {
        let code_name = if code > 0 { key } else { "" };
        let mut event = json!({"type": "keyDown", "key": key, "code": code_name, "windowsVirtualKeyCode": code});
        if !text.is_empty() {
            event["text"] = text.into();
        }
        self.send("Input.dispatchKeyEvent", &event);
        event["type"] = "keyUp".into();
        event["text"] = "".into();
        self.send("Input.dispatchKeyEvent", &event);
    }
}
