//! The memory and the threads of this machine.

use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Bytes of the buffer that is read, so many that processor caches hold little of it.
const BUFFER_BYTES: u64 = 512 << 20;
const PASSES: usize = 4;
/// Words that a thread reads at a time.
const CHUNK: usize = 1 << 16;

/// The bytes of memory that can still be allocated. `None` where the system does not say, which is everywhere but on
/// Linux.
pub fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    available(&text)
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Lets the process keep up to 64 MiB of freed memory for the next allocation. Layers allocate and free the same few
/// megabytes again and again, and the GNU allocator would return them to the system each time; that is half of the page
/// faults of a prefill of 2,048 tokens. Call it once, at the start of a program. It does nothing on systems other than Linux
/// with the GNU C library.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` takes any numbers, and what it does not like it ignores.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 20);
        // Memory that one thread frees is of use to the others only if they share it.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives threads that start from now on heaps of their own, as many as there are processors beside the first, after
/// [`keep_freed_memory`] has given all the same one. Threads that allocate side by side, as those of several sequences do,
/// otherwise wait for each other; one prompt at a time is better off with one heap. It does nothing on systems other than Linux
/// with the GNU C library.
pub fn let_threads_allocate_apart() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` takes any numbers, and what it does not like it ignores.
    unsafe {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let heaps = i32::try_from(processors.saturating_add(1)).unwrap_or(i32::MAX);
        libc::mallopt(libc::M_ARENA_MAX, heaps);
    }
}

/// Returns to the system the memory that the process has freed, and the pages of the program's file that were needed until now,
/// for the time after something large: reading a vocabulary of 152,000 tokens leaves tens of megabytes behind, and starting
/// as many of a program with kernels for GPUs. What is needed again of the file comes back from the system's cache. It does
/// nothing on systems other than Linux, and less without the GNU C library.
pub fn release_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `malloc_trim` takes any number and touches only memory that is not allocated.
    unsafe {
        libc::malloc_trim(0);
    }
    #[cfg(target_os = "linux")]
    if let (Ok(program), Ok(maps)) = (
        std::fs::read_link("/proc/self/exe"),
        std::fs::read_to_string("/proc/self/smaps"),
    ) {
        for (start, end) in unchanged_parts(&maps, &program.to_string_lossy()) {
            // SAFETY: the pages can not be written, and none of them has been since they were read from the file: when they
            // are touched next, the system reads the same bytes there.
            unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_DONTNEED) };
        }
    }
}

/// The address ranges in the text of /proc/self/smaps that show a file as it is: not writable, and no page of them changed, as
/// those with addresses are that the loader has filled in. Only of the program is that for ever: of a library that another thread
/// loads, the loader may change a page between this and what is done with it.
#[cfg(target_os = "linux")]
fn unchanged_parts(maps: &str, file: &str) -> Vec<(usize, usize)> {
    let mut parts = Vec::new();
    let mut part = None;
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else {
            continue;
        };
        if let Some((start, end)) = first.split_once('-') {
            let address = |text| usize::from_str_radix(text, 16).ok();
            let own = line.ends_with(file) && words.next().is_some_and(|may| !may.contains('w'));
            part = address(start).zip(address(end)).filter(|_| own);
        } else if first == "Anonymous:" && words.next() == Some("0") {
            parts.extend(part.take());
        }
    }
    parts
}

/// Moves memory that will be read many times to huge pages. A processor that reads all weights for every token then reads a
/// quarter to a third more bytes per second. The memory is copied once. It does nothing on systems other than Linux 6.1 and
/// later.
pub fn use_huge_pages<T>(memory: &[T]) {
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        let (start, end) = (
            memory.as_ptr() as usize,
            memory.as_ptr() as usize + size_of_val(memory),
        );
        let collapse = |start: usize, end: usize| {
            // SAFETY: the advice moves pages and changes nothing in them, those of neighbours at both ends included; a range
            // that does not suit the system is an error without effect.
            start < end
                && unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_COLLAPSE) == 0 }
        };
        // With the ends, unless nothing lies beside them.
        if !collapse(start / HUGE * HUGE, end.next_multiple_of(HUGE)) {
            collapse(start.next_multiple_of(HUGE), end / HUGE * HUGE);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// Asks for huge pages below memory that is about to be written for the first time; see [`use_huge_pages`], which would copy
/// it later. It does nothing on systems other than Linux.
pub fn prefer_huge_pages<T>(memory: &mut [std::mem::MaybeUninit<T>]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4 << 10;
        let start = (memory.as_ptr() as usize).next_multiple_of(PAGE);
        let end = (memory.as_ptr() as usize + size_of_val(memory)) / PAGE * PAGE;
        if start < end {
            // SAFETY: the advice is about pages of which this memory is all, and changes nothing in them; what the system
            // does not like it ignores.
            unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// The number of threads that the CPU kernels use.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// The bytes per second at which all threads together read main memory, measured as the best of a few passes over a buffer
/// of 512 MiB, or of a quarter of the free memory if that is less.
pub fn read_bandwidth() -> f64 {
    let bytes = free_memory().map_or(BUFFER_BYTES, |free| BUFFER_BYTES.min(free / 4));
    let words = (bytes / 8).max(1) as usize;
    // Values that are not zero: pages of zeros may be shared.
    let buffer: Vec<u64> = (0..words as u64).into_par_iter().collect();
    // Where weights lie, too; with small pages the processor reads a quarter less.
    use_huge_pages(&buffer);
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let started = Instant::now();
        let sum: u64 = buffer
            .par_chunks(CHUNK)
            .map(|chunk| chunk.iter().fold(0u64, |sum, word| sum.wrapping_add(*word)))
            .reduce(|| 0, u64::wrapping_add);
        black_box(sum);
        best = best.min(started.elapsed().as_secs_f64());
    }
    (words * 8) as f64 / best.max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn only_what_shows_the_file_unchanged_can_be_read_again() {
        let part = |range: &str, may: &str, file: &str, changed: usize| {
            format!(
                "{range} {may} 00000000 fe:00 17    {file}\nSize: 8 kB\nAnonymous:   {changed} kB\nVmFlags: rd mr\n"
            )
        };
        let maps = [
            part("1000-3000", "r--p", "/bin/own", 0),
            part("3000-8000", "r-xp", "/bin/own", 0),
            part("8000-9000", "r--p", "/bin/own", 4),
            part("9000-a000", "rw-p", "/bin/own", 0),
            part("b000-c000", "r-xp", "/lib/other", 0),
            part("c000-d000", "rw-p", "", 0),
        ];
        let found = unchanged_parts(&maps.concat(), "/bin/own");
        assert_eq!(found, [(0x1000, 0x3000), (0x3000, 0x8000)]);
    }

    #[test]
    fn the_program_goes_on_after_its_pages_are_gone() {
        release_memory();
        assert_eq!(available("MemAvailable: 1 kB\n"), Some(1 << 10));
    }

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       24 kB\nMemFree: 1 kB\nMemAvailable:   20 kB\n";
        assert_eq!(available(text), Some(20 << 10));
        assert_eq!(available("MemTotal: 24 kB\n"), None);
        assert_eq!(available("MemAvailable: many kB\n"), None);
    }
}
