//! Certificates of confgen's own making: `default.pem`, and the self-signed one that is in it while the operator has none.
//! This module doesn't choose the certificate in `default.pem`.

use std::io;
use std::path::PathBuf;

use super::{DEFAULT, SELF_SIGNED, path_token};
use crate::local_files::certificate::Certificate;
use crate::local_files::trial::Copies;
use crate::state_dir::{Error, io_error};

/// Writes `default.pem`: the chosen certificate again, or a self-signed one.
pub(super) fn write_default(chosen: Option<&Certificate>, copies: &Copies) -> Result<Certificate, Error> {
    let path = copies.path_of(DEFAULT);
    let (file, content) = match chosen {
        Some(chosen) => {
            let copy = PathBuf::from(chosen.copy.to_string());
            let name = copy.file_name().unwrap_or_default().to_string_lossy();
            (chosen.file.clone(), copies.read_copy(&name).map_err(io_error("read", &copy))?)
        }
        None => (copies.path_of(SELF_SIGNED), load_self_signed(copies)?),
    };
    copies.write_copy(DEFAULT, &content)?;
    Certificate::parse(file, path_token(&path)?, &content)
        .map_err(|error| io_error("read", &path)(io::Error::other(error)))
}

/// A certificate that lets HTTPS answer while there is no other. It is made once, and made again if its file is damaged.
pub(super) fn load_self_signed(copies: &Copies) -> Result<Vec<u8>, Error> {
    let path = copies.path_of(SELF_SIGNED);
    if let Ok(content) = copies.read_copy(SELF_SIGNED)
        && Certificate::parse(path.clone(), path_token(&path)?, &content).is_ok()
    {
        return Ok(content);
    }
    let made = rcgen::generate_simple_self_signed(["haproxy-discover.invalid".to_owned()])
        .map_err(|error| io_error("make", &path)(io::Error::other(error)))?;
    let content = (made.cert.pem() + &made.signing_key.serialize_pem()).into_bytes();
    copies.write_copy(SELF_SIGNED, &content)?;
    Ok(content)
}
