//! The stats page's password: given in a file, or made; haproxy.cfg gets its crypt(3) hash alone.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use regular_file::SMALL;
use sha_crypt::{PasswordHasher, PasswordVerifier, ShaCrypt};

use crate::disk::{Error, failed, replace};

/// 24 letters and digits: 142 bits, and nobody has to quote them.
const LENGTH: usize = 24;
/// Twelve bytes are sixteen letters of salt, the most that crypt(3) reads; a longer one would never verify.
const SALT: usize = 12;

/// The hash for haproxy.cfg. The password stands in `given`, or in `state_dir/stats-password`, which is made if need
/// be, readable for its owner alone. A password keeps its hash, so that the same state gives the same file.
pub fn password_hash(given: Option<&Path>, state_dir: &Path) -> Result<String, Error> {
    let password = match given {
        Some(path) => regular_file::read_text(path, SMALL).map_err(failed("read", path))?,
        None => own_password(&state_dir.join("stats-password"))?,
    };
    let password = password.trim_end_matches(['\r', '\n']);
    let path = state_dir.join("stats-password.hash");
    if password.is_empty() {
        let path = given.unwrap_or(&path);
        return Err(failed("use", path)(io::Error::other("the stats page's password is empty")));
    }
    if let Ok(hash) = regular_file::read_text(&path, SMALL)
        && verifies(password, hash.trim())
    {
        return Ok(hash.trim().to_owned());
    }
    let hash = ShaCrypt::default()
        .hash_password_with_salt(password.as_bytes(), &random::<SALT>()?)
        .map_err(|error| failed("hash the password for", &path)(io::Error::other(error.to_string())))?
        .to_string();
    replace(&path, hash.as_bytes(), 0o600)?;
    Ok(hash)
}

/// The hash that was made last, for somebody who only looks; one that no password has where there is none.
pub fn last_hash(state_dir: &Path) -> String {
    let hash = regular_file::read_text(&state_dir.join("stats-password.hash"), SMALL).unwrap_or_default();
    if is_hash(hash.trim()) { hash.trim().to_owned() } else { "*".to_owned() }
}

/// Whatever was put into the file, only what crypt(3) makes may come near haproxy.cfg.
fn is_hash(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"$./=".contains(&b))
}

fn verifies(password: &str, hash: &str) -> bool {
    is_hash(hash) && ShaCrypt::default().verify_password(password.as_bytes(), hash).is_ok()
}

fn own_password(path: &Path) -> Result<String, Error> {
    match regular_file::read(path, SMALL).map(String::from_utf8) {
        Ok(Ok(password)) if !password.trim().is_empty() => return Ok(password),
        // A power cut or a full disk left it so. confgen made it, and can make another one.
        Ok(_) => tracing::warn!("{}: it is empty or no text; a new stats page's password is made", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("read", path)(error)),
    }
    // 64 signs for 256 values: none is likelier than another.
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bytes = random::<LENGTH>()?;
    let password: String =
        bytes.iter().filter_map(|byte| SIGNS.get(usize::from(byte % 64))).map(|sign| char::from(*sign)).collect();
    replace(path, format!("{password}\n").as_bytes(), 0o600)?;
    Ok(password)
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; N];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).map_err(failed("read", path))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_password_is_made_once_and_keeps_its_hash() {
        let dir = tempfile::tempdir().unwrap();
        let hash = password_hash(None, dir.path()).unwrap();
        assert!(hash.starts_with("$6$"), "{hash}");
        assert!(hash.split('$').rev().nth(1).is_some_and(|salt| salt.len() <= 16), "{hash}");
        assert_eq!(password_hash(None, dir.path()).unwrap(), hash);
        let password = dir.path().join("stats-password");
        assert_eq!(fs::metadata(&password).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&password).unwrap().trim().len(), LENGTH);

        let given = dir.path().join("given");
        replace(&given, b"secret\n", 0o600).unwrap();
        let other = password_hash(Some(&given), dir.path()).unwrap();
        assert_ne!(other, hash);
        assert_eq!(password_hash(Some(&given), dir.path()).unwrap(), other);
        replace(&given, b"\n", 0o600).unwrap();
        assert!(password_hash(Some(&given), dir.path()).is_err());
    }

    #[test]
    fn a_damaged_password_or_hash_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut hash = password_hash(None, dir.path()).unwrap();
        let password = dir.path().join("stats-password");
        for damage in [&b""[..], b"\n", b"\xff\xfe\x00"] {
            fs::write(&password, damage).unwrap();
            let new = password_hash(None, dir.path()).unwrap();
            assert_ne!(new, hash);
            assert_eq!(fs::read_to_string(&password).unwrap().trim().len(), LENGTH);
            hash = new;
        }
        for damage in [&b""[..], b"$6$x", b"\xff"] {
            fs::write(dir.path().join("stats-password.hash"), damage).unwrap();
            let new = password_hash(None, dir.path()).unwrap();
            let text = fs::read_to_string(&password).unwrap();
            assert!(verifies(text.trim(), &new) && new != hash);
            hash = new;
        }
    }
}
