//! Objects by number, and calls by their arguments.
//!
//! The product's objects are heavy: a replica of the store, all drains, a set of records. A state of the model has a number for
//! each. Objects with one text (`{:?}`) are one object, so equal situations are one state. A decision of the product is a pure
//! function, so its result for a numbered object and an input is kept: the production code runs once for each distinct argument, and
//! the search over millions of states costs what the look-ups cost.

use std::collections::HashMap;
use std::fmt::{self, Debug, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock};

/// The number of an object in its [`Pool`].
pub type Id = u32;

/// The distinct objects of one type.
pub struct Pool<T> {
    known: RwLock<Known<T>>,
}

struct Known<T> {
    ids: HashMap<(u64, u64), Id>,
    items: Vec<Arc<T>>,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { known: RwLock::new(Known { ids: HashMap::new(), items: Vec::new() }) }
    }
}

impl<T: Debug> Pool<T> {
    /// The number of this object. The first object with its text gets a new one.
    pub fn put(&self, item: T) -> Id {
        let print = fingerprint(&item);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = known.ids.get(&print) {
            return *id;
        }
        let id = Id::try_from(known.items.len()).unwrap_or(Id::MAX);
        known.items.push(Arc::new(item));
        known.ids.insert(print, id);
        id
    }

    /// The object with this number.
    pub fn get(&self, id: Id) -> Arc<T> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        #[expect(clippy::indexing_slicing, reason = "numbers come from `put` alone")]
        Arc::clone(&known.items[id as usize])
    }

    /// The number of distinct objects.
    pub fn len(&self) -> usize {
        self.known.read().unwrap_or_else(PoisonError::into_inner).items.len()
    }

    /// True before the first object.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// 128 bits of a text, which is never held whole.
struct Digest(DefaultHasher, DefaultHasher);

impl Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        self.1.write(text.as_bytes());
        Ok(())
    }
}

fn fingerprint(item: &impl Debug) -> (u64, u64) {
    let mut digest = Digest(DefaultHasher::new(), DefaultHasher::new());
    // Two hashers with one seed would agree on every text.
    digest.1.write_u8(1);
    // A writer that takes everything never fails.
    let _ = write!(digest, "{item:?}");
    (digest.0.finish(), digest.1.finish())
}

/// Results by arguments.
pub struct Memo<K, V> {
    results: RwLock<HashMap<K, V>>,
}

impl<K, V> Default for Memo<K, V> {
    fn default() -> Self {
        Self { results: RwLock::new(HashMap::new()) }
    }
}

impl<K: Eq + Hash, V: Clone> Memo<K, V> {
    /// The result for these arguments. Two threads may both compute it, and get the same.
    pub fn get_or(&self, arguments: K, compute: impl FnOnce() -> V) -> V {
        if let Some(result) = self.results.read().unwrap_or_else(PoisonError::into_inner).get(&arguments) {
            return result.clone();
        }
        let result = compute();
        self.results.write().unwrap_or_else(PoisonError::into_inner).insert(arguments, result.clone());
        result
    }

    /// The number of distinct calls.
    pub fn len(&self) -> usize {
        self.results.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// True before the first call.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
