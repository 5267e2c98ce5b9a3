//! Measured values of one kind, in order, and what they come to.

/// Values of one kind, sorted. There is at least one.
#[derive(Clone, Debug)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Sorts the values.
    ///
    /// # Panics
    /// If there are none: then nothing was measured.
    pub fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        assert!(!values.is_empty(), "nothing was measured");
        values.sort_unstable_by(f64::total_cmp);
        Self(values)
    }

    pub fn values(&self) -> &[f64] {
        &self.0
    }

    pub fn median(&self) -> f64 {
        self.percentile(0.5)
    }

    /// The value that this share (0–1) of all values doesn't exceed.
    pub fn percentile(&self, share: f64) -> f64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank in a list")]
        let rank = (self.0.len() as f64 * share) as usize;
        self.0[rank.min(self.0.len() - 1)]
    }

    pub fn least(&self) -> f64 {
        self.0[0]
    }

    pub fn most(&self) -> f64 {
        self.0[self.0.len() - 1]
    }
}
