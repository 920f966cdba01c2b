//! A buffer that several threads write.

use std::mem::MaybeUninit;

/// A buffer that threads write disjoint parts of.
#[derive(Clone, Copy)]
pub struct Shared {
    start: *mut f32,
    len: usize,
}

// SAFETY: a buffer is only written, through `write`, whose callers promise that no two threads write one element.
unsafe impl Sync for Shared {}
// SAFETY: f32 may be written from any thread, and the pointer has no owner to be dropped.
unsafe impl Send for Shared {}

impl Shared {
    pub fn new(buffer: &mut [f32]) -> Self {
        Self {
            start: buffer.as_mut_ptr(),
            len: buffer.len(),
        }
    }

    /// Of memory that holds no numbers yet.
    pub fn of_uninit(buffer: &mut [MaybeUninit<f32>]) -> Self {
        Self {
            start: buffer.as_mut_ptr().cast(),
            len: buffer.len(),
        }
    }

    /// # Safety
    /// The buffer lives, `at + values.len()` is inside it and no other thread writes there.
    pub unsafe fn write(&self, at: usize, values: &[f32]) {
        debug_assert!(at + values.len() <= self.len);
        // SAFETY: the caller promises that the range is inside the buffer and written by nobody else; `values` is a slice
        // of another one.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.start.add(at), values.len()) };
    }
}
