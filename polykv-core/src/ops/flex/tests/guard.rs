//! Every buffer of these tests ends at a page that nobody may touch, at every instruction set: a vector that reaches over the
//! end of an input or an output, or into memory that was freed, ends the test program at that instruction.
//! `POLYKV_GUARD=0` leaves that to Valgrind, which cannot run AVX-512.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

#[global_allocator]
static GUARDED: Guarded = Guarded {
    next: AtomicUsize::new(0),
    live: AtomicUsize::new(0),
};

const PAGE: usize = 4096;
/// Addresses that are set aside, never used twice. When they are gone, memory comes from the system.
const ARENA: usize = 1 << 40;
/// Vectors have more bytes, and what is larger would take long to map.
const GUARDED_BYTES: std::ops::Range<usize> = 64..64 << 20;

/// Allocations that are guarded at a time. Each divides a mapping twice, and Linux gives a process 65,530 mappings.
const MOST_LIVE: usize = 20_000;

struct Guarded {
    /// Bytes of the arena that were given out.
    next: AtomicUsize,
    /// Guarded allocations that are in use.
    live: AtomicUsize,
}

/// Where the arena starts; none where the system has none to give or none is wanted.
fn arena() -> Option<usize> {
    static START: OnceLock<Option<usize>> = OnceLock::new();
    *START.get_or_init(|| {
        // SAFETY: the name ends with a zero byte; the value, if there is one, is a text of at least its end mark.
        let off = unsafe {
            let value = libc::getenv(c"POLYKV_GUARD".as_ptr());
            !value.is_null() && *value == b'0' as libc::c_char
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the system's choice touches no other.
        let start = unsafe { libc::mmap(null_mut(), ARENA, libc::PROT_NONE, flags, -1, 0) };
        (start != libc::MAP_FAILED && !off).then_some(start as usize)
    })
}

impl Guarded {
    /// Whole pages for an allocation, followed by one that stays closed.
    fn guarded(&self, layout: Layout) -> Option<*mut u8> {
        if !GUARDED_BYTES.contains(&layout.size()) || layout.align() > PAGE {
            return None;
        }
        let arena = arena()?;
        if self.live.load(Ordering::Relaxed) >= MOST_LIVE {
            return None;
        }
        let pages = layout.size().next_multiple_of(PAGE);
        let offset = self.next.fetch_add(pages + PAGE, Ordering::Relaxed);
        if offset + pages + PAGE > ARENA {
            return None;
        }
        let start = arena + offset;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: these pages are inside the arena, and no other call has got them.
        let opened = unsafe { libc::mprotect(start as *mut _, pages, access) } == 0;
        // At the very end, as far as the alignment lets it.
        let at = (start + pages - layout.size()) & !(layout.align() - 1);
        if opened {
            self.live.fetch_add(1, Ordering::Relaxed);
        }
        opened.then_some(at as *mut u8)
    }
}

// SAFETY: memory of the arena is given out once, of the size and alignment asked for, and is zero; everything else is the
// system allocator's, which frees what lies outside of the arena.
unsafe impl GlobalAlloc for Guarded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.guarded(layout).unwrap_or_else(|| {
            // SAFETY: the caller's promise about `layout` is passed on.
            unsafe { System.alloc(layout) }
        })
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let inside = arena().filter(|start| (*start..start + ARENA).contains(&(at as usize)));
        if inside.is_some() {
            self.live.fetch_sub(1, Ordering::Relaxed);
        } else {
            // SAFETY: what lies outside of the arena came from the system's allocator, with this layout.
            return unsafe { System.dealloc(at, layout) };
        }
        let start = at as usize & !(PAGE - 1);
        let pages = layout.size().next_multiple_of(PAGE);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: the pages of this allocation alone, which nobody uses any more, are closed and given back.
        unsafe { libc::mmap(start as *mut _, pages, libc::PROT_NONE, flags, -1, 0) };
    }
}

/// The signal that ends a child which reads the byte at `at`; none if it lives.
fn signal_of_reading(at: *const u8) -> Option<i32> {
    // SAFETY: the child reads one byte, which may kill it, and ends without touching anything of its parent; the parent
    // waits for this child alone.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            std::hint::black_box(at.read_volatile());
            libc::_exit(0);
        }
        assert!(child > 0, "no child");
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status))
    }
}

#[test]
fn a_byte_behind_a_buffer_and_one_of_a_freed_buffer_are_out_of_reach() {
    if arena().is_none() {
        return;
    }
    for count in [16, 17, 100, 1024, 5000] {
        let buffer = vec![1.0f32; count];
        let range = buffer.as_ptr_range();
        let last = range.end.cast::<u8>().wrapping_sub(1);
        assert_eq!(signal_of_reading(last), None, "{count}");
        let fault = Some(libc::SIGSEGV);
        assert_eq!(signal_of_reading(range.end.cast()), fault, "{count}");
        drop(buffer);
        assert_eq!(signal_of_reading(last), fault, "{count}");
    }
}
