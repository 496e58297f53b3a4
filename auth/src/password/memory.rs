//! The memory that argon2id hashes are computed in.

use std::collections::TryReserveError;

use argon2::Block;

/// How many blocks of 1 KiB are reserved at least: 33 MiB. Only those in use take real memory.
///
/// glibc maps what has more than 32 MiB, and unmaps it when it is freed. Anything smaller comes out
/// of its heap once one of that size was freed, and stays with the process from then on; at the
/// alignment of a block, up to eight of them pile up before the first is used again.
const RESERVED: usize = 33 << 10;

/// Memory that one hash after the other is computed in, as large as the largest of them.
///
/// It is not wiped in between. What the last password left in it goes with the memory, when the
/// thread that holds it has had no work for a while.
#[derive(Default)]
pub(super) struct Memory {
    /// Its length is what takes real memory.
    blocks: Vec<Block>,
}

impl Memory {
    /// `count` blocks of 1 KiB with anything in them.
    ///
    /// # Errors
    /// When the system does not give that much. It holds nothing then.
    pub(super) fn blocks(&mut self, count: usize) -> Result<&mut [Block], TryReserveError> {
        if count > self.blocks.capacity() {
            // Freed first, since both together may be too much.
            self.blocks = Vec::new();
            self.blocks
                .try_reserve_exact(count.max(RESERVED))
                // Where address space is limited.
                .or_else(|_too_much| self.blocks.try_reserve_exact(count))?;
        }
        if count > self.blocks.len() {
            self.blocks.resize(count, Block::new());
        }
        Ok(self
            .blocks
            .get_mut(..count)
            .expect("it was made that long above"))
    }

    /// Gives everything back if that is more than `most` blocks.
    pub(super) fn limit(&mut self, most: usize) {
        if self.blocks.len() > most {
            self.blocks = Vec::new();
        }
    }

    /// How many blocks it holds.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.blocks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_and_is_given_back_beyond_the_limit_only() {
        let mut memory = Memory::default();
        for (count, held) in [(8, 8), (64, 64), (8, 64), (RESERVED + 1, RESERVED + 1)] {
            assert_eq!(memory.blocks(count).unwrap().len(), count);
            assert_eq!(memory.held(), held);
        }
        memory.limit(RESERVED + 1);
        assert_eq!(memory.held(), RESERVED + 1);
        memory.limit(RESERVED);
        assert_eq!(memory.blocks.capacity(), 0);
    }

    #[test]
    fn too_much_is_an_error_and_no_abort() {
        let mut memory = Memory::default();
        assert!(memory.blocks(usize::MAX / size_of::<Block>()).is_err());
        assert_eq!(memory.blocks(8).unwrap().len(), 8);
    }

    /// The numbers are those of a whole process, so this test runs once more in one of its own.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_given_back_goes_to_the_system() {
        use std::{env, fs, process::Command};

        const ALONE: &str = "CHINWAG_AUTH_TEST_ALONE";
        const THIS: &str = "password::memory::tests::what_is_given_back_goes_to_the_system";

        fn resident() -> u64 {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("VmRSS:"));
            let kib = line.and_then(|line| line.split_ascii_whitespace().nth(1));
            kib.unwrap().parse().unwrap()
        }

        if env::var_os(ALONE).is_none() {
            let run = Command::new(env::current_exe().unwrap())
                .args(["--exact", THIS])
                .env(ALONE, "")
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&run.stdout);
            assert!(
                run.status.success() && text.contains("1 passed"),
                "{text}{}",
                String::from_utf8_lossy(&run.stderr)
            );
            return;
        }
        let before = resident();
        let mut after = Vec::new();
        for _ in 0..12 {
            let mut memory = Memory::default();
            memory.blocks(19 << 10).unwrap();
            assert!(resident() >= before + (18 << 10));
            drop(memory);
            after.push(resident());
        }
        let most = after.iter().max().unwrap();
        assert!(
            *most < before + (8 << 10),
            "KiB resident: {before}, later {after:?}"
        );
    }
}
