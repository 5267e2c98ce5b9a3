//! Commands of Chromium's DevTools: screens of other sizes, dark pages, pages without script, the accessibility tree.

use serde_json::{Value, json};

use super::Browser;

/// A screen, and the user's choice of colors.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// The screen's width in CSS pixels. Below 600 it is a phone's.
    pub width: u32,
    /// The screen's height.
    pub height: u32,
    /// The user prefers dark pages.
    pub is_dark: bool,
}

/// A node of the accessibility tree, as a screen reader has it.
#[derive(Clone, Debug)]
pub struct Node {
    /// `button`, `link`, `table`, …
    pub role: String,
    /// Empty if the node has no name.
    pub name: String,
}

impl Look {
    /// A notebook's screen.
    pub const WIDE: Self = Self { width: 1280, height: 800, is_dark: false };

    /// A phone's screen.
    pub const PHONE: Self = Self { width: 390, height: 844, is_dark: false };

    /// The same in the dark.
    #[must_use]
    pub fn dark(self) -> Self {
        Self { is_dark: true, ..self }
    }
}

impl Browser {
    /// Shows this page and later ones on such a screen.
    #[track_caller]
    pub fn look(&self, Look { width, height, is_dark }: Look) {
        let is_phone = width < 600;
        self.send(
            "Emulation.setDeviceMetricsOverride",
            &json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone}),
        );
        let scheme = if is_dark { "dark" } else { "light" };
        self.send(
            "Emulation.setEmulatedMedia",
            &json!({"features": [
                {"name": "prefers-color-scheme", "value": scheme},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ]}),
        );
    }

    /// Lets pages run scripts, or not, from the next one on. [`Browser::run`] needs scripts.
    #[track_caller]
    pub fn set_script(&self, is_on: bool) {
        self.send("Emulation.setScriptExecutionDisabled", &json!({ "value": !is_on }));
    }

    /// Gives the first element that the selector finds the focus, in pages without script too.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn focus(&self, selector: &str) {
        let document = self.send("DOM.getDocument", &json!({"depth": 0}));
        let root = &document["root"]["nodeId"];
        let found = self.send("DOM.querySelector", &json!({"nodeId": root, "selector": selector}));
        assert_ne!(found["nodeId"], 0, "no {selector}");
        self.send("DOM.focus", &json!({"nodeId": found["nodeId"]}));
    }

    /// The page's accessibility tree, as Chromium computes it.
    #[track_caller]
    pub fn accessibility_tree(&self) -> Vec<Node> {
        let tree = self.send("Accessibility.getFullAXTree", &json!({}));
        let nodes = tree["nodes"].as_array().expect("nodes").iter().filter(|node| node["ignored"] == false);
        let text = |value: &Value| value["value"].as_str().unwrap_or_default().trim().to_owned();
        nodes.map(|node| Node { role: text(&node["role"]), name: text(&node["name"]) }).collect()
    }

    /// A command of the DevTools protocol, and its result.
    #[track_caller]
    pub(super) fn send(&self, command: &str, parameters: &Value) -> Value {
        self.ask("POST", "goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }
}
