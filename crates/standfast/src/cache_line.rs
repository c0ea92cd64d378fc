//! Keeps what different threads write on different cache lines, so that they do not wait for each other.

use std::ops::{Deref, DerefMut};

/// A value with its cache lines to itself. Two lines of 64 bytes: processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct OwnLine<T>(pub(crate) T);

impl<T> Deref for OwnLine<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for OwnLine<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
