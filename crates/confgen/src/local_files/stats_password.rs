//! The stats page's password: from a file of the operator's, or made by confgen. Only its hash leaves this module.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use regular_file::SMALL;
use sha_crypt::{PasswordHasher, ShaCrypt};

use crate::render::stats_hash::{Hash, LONGEST, sha256_hex};
use crate::state_dir::{Error, io_error, replace_file};

/// The characters of a made password: 144 random bits, with no character that a shell needs quoted.
const LENGTH: usize = 24;
/// The least number of different characters in a made password. 24 random ones out of 64 have fewer once in ten million times. An
/// operator's password of 24 characters may repeat a few.
const VARIETY: usize = 12;
const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// The bytes of a salt. Twelve bytes are sixteen characters, the most that crypt(3) reads. A longer salt would never verify.
const SALT: usize = 12;

/// The hash for haproxy.cfg. The password is in `given`, or else in `state_dir/stats-password`, which is created for its owner only. A
/// password keeps its hash, so that the same state gives the same haproxy.cfg.
pub fn load_password_hash(given: Option<&Path>, state_dir: &Path) -> Result<Hash, Error> {
    let password = match given {
        Some(path) => regular_file::read_text(path, SMALL).map_err(io_error("read", path))?,
        None => load_own_password(&state_dir.join("stats-password"))?,
    };
    // Editors and `echo` end the file with a line feed.
    let password = password.trim_end_matches(['\r', '\n']);
    let path = state_dir.join("stats-password.hash");
    if password.is_empty() {
        let path = given.unwrap_or(&path);
        return Err(io_error("use", path)(io::Error::other("the stats page's password is empty")));
    }
    if password.len() > LONGEST {
        let text = format!("the stats page's password has {} bytes; at most {LONGEST} are allowed", password.len());
        return Err(io_error("use", given.unwrap_or(&path))(io::Error::other(text)));
    }
    let is_random = given.is_none() && is_generated(password);
    let last = regular_file::read_text(&path, SMALL).ok().and_then(|text| Hash::parse(text.trim()));
    // A new salt would give a new haproxy.cfg, and so a restart.
    if let Some(last) = last
        && matches!(last, Hash::Sha256(_)) == is_random
        && last.is_hash_of(password)
    {
        return Ok(last);
    }
    let hash = if is_random { Hash::Sha256(sha256_hex(password)) } else { hash_with_crypt(password, &path)? };
    replace_file(&path, hash.as_str().as_bytes(), 0o600)?;
    Ok(hash)
}

/// The hash that was made last, for `render` and `diff`. Without one, a hash that no password has.
pub fn read_last_hash(state_dir: &Path) -> Hash {
    let text = regular_file::read_text(&state_dir.join("stats-password.hash"), SMALL).unwrap_or_default();
    Hash::parse(text.trim()).unwrap_or_else(|| Hash::Crypt("*".to_owned()))
}

fn hash_with_crypt(password: &str, path: &Path) -> Result<Hash, Error> {
    let hash = ShaCrypt::default()
        .hash_password_with_salt(password.as_bytes(), &random_bytes::<SALT>()?)
        .map_err(|error| io_error("hash the password for", path)(io::Error::other(error.to_string())))?;
    Ok(Hash::Crypt(hash.to_string()))
}

/// True if confgen made the password.
fn is_generated(password: &str) -> bool {
    let mut signs: Vec<u8> = password.bytes().collect();
    signs.sort_unstable();
    signs.dedup();
    password.len() == LENGTH && signs.len() >= VARIETY && signs.iter().all(|sign| SIGNS.contains(sign))
}

fn load_own_password(path: &Path) -> Result<String, Error> {
    match regular_file::read(path, SMALL).map(String::from_utf8) {
        Ok(Ok(password)) if !password.trim().is_empty() => return Ok(password),
        // A power cut or a full disk damaged the file. confgen made the password, and can make another one.
        Ok(_) => tracing::warn!(file = %path.display(), "stats page's password is empty or no text, making a new one"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error("read", path)(error)),
    }
    // 256 values for 64 characters: each is as likely as any other.
    let bytes = random_bytes::<LENGTH>()?;
    let password: String =
        bytes.iter().filter_map(|byte| SIGNS.get(usize::from(byte % 64))).map(|sign| char::from(*sign)).collect();
    replace_file(path, format!("{password}\n").as_bytes(), 0o600)?;
    Ok(password)
}

fn random_bytes<const N: usize>() -> Result<[u8; N], Error> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; N];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).map_err(io_error("read", path))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_password_is_made_once_and_keeps_its_hash() {
        let dir = tempfile::tempdir().unwrap();
        let hash = load_password_hash(None, dir.path()).unwrap();
        let password = dir.path().join("stats-password");
        let made = fs::read_to_string(&password).unwrap();
        assert_eq!(hash, Hash::Sha256(sha256_hex(made.trim())));
        assert_eq!(load_password_hash(None, dir.path()).unwrap(), hash);
        assert_eq!(read_last_hash(dir.path()), hash);
        assert_eq!(fs::metadata(&password).unwrap().mode() & 0o777, 0o600);
        assert_eq!(made.trim().len(), LENGTH);
    }

    #[test]
    fn a_given_password_is_stretched() {
        let dir = tempfile::tempdir().unwrap();
        let given = dir.path().join("given");
        replace_file(&given, b"secret\n", 0o600).unwrap();
        let hash = load_password_hash(Some(&given), dir.path()).unwrap();
        let Hash::Crypt(text) = &hash else { panic!("{hash:?}") };
        assert!(text.starts_with("$6$"), "{text}");
        assert!(text.split('$').rev().nth(1).is_some_and(|salt| salt.len() <= 16), "{text}");
        assert_eq!(load_password_hash(Some(&given), dir.path()).unwrap(), hash);
        assert_eq!(read_last_hash(dir.path()), hash);
        replace_file(&given, b"\n", 0o600).unwrap();
        assert!(load_password_hash(Some(&given), dir.path()).is_err());
    }

    #[test]
    fn a_password_that_haproxy_would_hash_for_long_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let given = dir.path().join("given");
        replace_file(&given, "x".repeat(LONGEST).as_bytes(), 0o600).unwrap();
        load_password_hash(Some(&given), dir.path()).unwrap();
        replace_file(&given, "x".repeat(LONGEST + 1).as_bytes(), 0o600).unwrap();
        let refusal = load_password_hash(Some(&given), dir.path()).unwrap_err().to_string();
        assert!(refusal.contains("129 bytes; at most 128 are allowed"), "{refusal}");
    }

    #[test]
    fn a_damaged_password_or_hash_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut hash = load_password_hash(None, dir.path()).unwrap();
        let password = dir.path().join("stats-password");
        for damage in [&b""[..], b"\n", b"\xff\xfe\x00"] {
            replace_file(&password, damage, 0o600).unwrap();
            let new = load_password_hash(None, dir.path()).unwrap();
            assert_ne!(new, hash);
            assert_eq!(fs::read_to_string(&password).unwrap().trim().len(), LENGTH);
            hash = new;
        }
        for damage in [&b""[..], b"$6$x", b"\xff"] {
            replace_file(&dir.path().join("stats-password.hash"), damage, 0o600).unwrap();
            let new = load_password_hash(None, dir.path()).unwrap();
            let text = fs::read_to_string(&password).unwrap();
            assert!(new.is_hash_of(text.trim()) && new == hash);
        }
    }

    #[test]
    fn a_persons_password_is_stretched_wherever_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        for person in ["secret", "aaaaaaaaaaaaaaaaaaaaaaaa", "correct horse battery 12"] {
            replace_file(&dir.path().join("stats-password"), person.as_bytes(), 0o600).unwrap();
            let hash = load_password_hash(None, dir.path()).unwrap();
            assert!(matches!(&hash, Hash::Crypt(text) if text.starts_with("$6$")), "{person}: {hash:?}");
        }
    }

    #[test]
    fn a_made_password_that_an_older_release_stretched_gets_the_cheap_hash() {
        let dir = tempfile::tempdir().unwrap();
        let hash = load_password_hash(None, dir.path()).unwrap();
        let path = dir.path().join("stats-password.hash");
        let made = fs::read_to_string(dir.path().join("stats-password")).unwrap();
        replace_file(&path, hash_with_crypt(made.trim(), &path).unwrap().as_str().as_bytes(), 0o600).unwrap();
        assert_eq!(load_password_hash(None, dir.path()).unwrap(), hash);
    }
}
