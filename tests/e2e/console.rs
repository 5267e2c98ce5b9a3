//! The console, in a real browser.

mod fixture;
mod follows;
mod hostile;
mod looks;
mod operated;
mod pictures;
mod without_script;
