//! The plan of a rotation: which files get the next number, and which one goes. Pure: no I/O.

/// One step of a rotation, in the order in which they are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Remove(usize),
    Rename(usize, usize),
}

/// Plans a rotation of the files with these numbers, in ascending order, so that at most `most` are left once there is a new
/// number 0. If a crash leaves only some steps done, a number is missing, and no file is replaced.
pub fn plan_rotation(numbers: &[usize], most: usize) -> Vec<Step> {
    let oldest_first = numbers.iter().rev().copied();
    oldest_first
        .map(|number| if number + 1 < most { Step::Rename(number, number + 1) } else { Step::Remove(number) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_move_up_and_the_oldest_goes() {
        assert_eq!(plan_rotation(&[], 3), []);
        assert_eq!(plan_rotation(&[0], 3), [Step::Rename(0, 1)]);
        assert_eq!(plan_rotation(&[0, 1, 2], 3), [Step::Remove(2), Step::Rename(1, 2), Step::Rename(0, 1)]);
        // A crash after the first rename of an earlier rotation.
        assert_eq!(plan_rotation(&[0, 2], 4), [Step::Rename(2, 3), Step::Rename(0, 1)]);
        assert_eq!(plan_rotation(&[0], 1), [Step::Remove(0)]);
    }
}
