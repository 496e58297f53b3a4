//! The mutexes of this crate. In debug builds, tests among them, they see to the order in which they are taken.
//!
//! Two threads that take two locks in different orders wait for each other for good, and a test notices only when both
//! do so in the same moment. So the order is what is checked: a thread that takes a second lock says for all that the
//! one may be taken with the other held, and whoever takes them the other way round afterwards panics, though nobody
//! else is there. Locks are told apart by the type of what they guard. With one held, no other of the same type may be
//! taken. Release builds have nothing of it.

#[cfg(not(debug_assertions))]
pub(crate) use parking_lot::{Mutex, MutexGuard};

#[cfg(debug_assertions)]
pub(crate) use ordered::{Mutex, MutexGuard};

#[cfg(debug_assertions)]
mod ordered {
    use std::{
        any::type_name,
        cell::RefCell,
        collections::HashMap,
        ops::{Deref, DerefMut},
        panic::Location,
        ptr,
    };

    /// A type that is guarded, and where it was locked.
    type Taken = (&'static str, &'static Location<'static>);

    thread_local! {
        /// What this thread has locked, by the address of the lock.
        static HELD: RefCell<Vec<(*const (), Taken)>> = const { RefCell::new(Vec::new()) };
    }

    /// Which types were locked with which ones held, and where for the first time. Not more than pairs of types.
    #[derive(Default)]
    struct Order(HashMap<&'static str, HashMap<&'static str, [Taken; 2]>>);

    impl Order {
        /// Puts down that `second` is locked with `first` held.
        ///
        /// # Errors
        ///
        /// What of the past speaks against it: locks that lead from the second to the first.
        fn note(&mut self, first: Taken, second: Taken) -> Result<(), Vec<[Taken; 2]>> {
            if first.0 == second.0 {
                return Err(Vec::new());
            }
            if self
                .0
                .get(first.0)
                .is_some_and(|then| then.contains_key(second.0))
            {
                return Ok(());
            }
            if let Some(way) = self.way(second.0, first.0) {
                return Err(way);
            }
            let then = self.0.entry(first.0).or_default();
            then.insert(second.0, [first, second]);
            Ok(())
        }

        /// The locks that lead from one type to another. Ends, since what was noted has no circle.
        fn way(&self, from: &str, to: &str) -> Option<Vec<[Taken; 2]>> {
            self.0.get(from)?.iter().find_map(|(then, pair)| {
                let mut way = vec![*pair];
                if *then != to {
                    way.extend(self.way(then, to)?);
                }
                Some(way)
            })
        }
    }

    /// # Panics
    ///
    /// If what is held may not be held now.
    fn check(taken: Taken) {
        static ORDER: parking_lot::Mutex<Option<Order>> = parking_lot::Mutex::new(None);
        let wrong = HELD.with_borrow(|held| {
            if held.is_empty() {
                return None;
            }
            let mut order = ORDER.lock();
            let order = order.get_or_insert_default();
            held.iter().find_map(|&(_, first)| {
                let past = order.note(first, taken).err()?;
                Some((first, past))
            })
        });
        if let Some(((first, held), past)) = wrong {
            let (second, at) = taken;
            let past: String = past
                .iter()
                .map(|[(first, at), (second, then)]| {
                    format!("\n  {first} was locked at {at}, and then {second} at {then}")
                })
                .collect();
            panic!("{second} is locked at {at} with {first} locked at {held}; before:{past}");
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(parking_lot::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(parking_lot::Mutex::new(value))
        }

        #[track_caller]
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            check(self.here());
            self.hold(self.0.lock())
        }

        /// Waits for nobody, and so may be called with anything held.
        #[cfg(test)]
        #[track_caller]
        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().map(|guard| self.hold(guard))
        }

        pub(crate) fn get_mut(&mut self) -> &mut T {
            self.0.get_mut()
        }

        #[track_caller]
        fn here(&self) -> Taken {
            (type_name::<T>(), Location::caller())
        }

        #[track_caller]
        fn hold<'a>(&'a self, guard: parking_lot::MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            let lock = ptr::from_ref(self).cast();
            HELD.with_borrow_mut(|held| held.push((lock, self.here())));
            MutexGuard { guard, lock }
        }
    }

    #[derive(Debug)]
    pub(crate) struct MutexGuard<'a, T> {
        guard: parking_lot::MutexGuard<'a, T>,
        lock: *const (),
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.guard
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            &mut self.guard
        }
    }

    impl<T> Drop for MutexGuard<'_, T> {
        fn drop(&mut self) {
            // A thread that ends may have forgotten already.
            let _ = HELD.try_with(|held| {
                let mut held = held.borrow_mut();
                if let Some(at) = held.iter().rposition(|(lock, _)| *lock == self.lock) {
                    held.remove(at);
                }
            });
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        struct A;
        struct B;
        struct C;

        #[test]
        #[should_panic(expected = "before:\n  ")]
        fn locks_of_two_types_are_taken_in_one_order() {
            let (a, b) = (Mutex::new(A), Mutex::new(B));
            let other = Mutex::new(A);
            drop((a.lock(), b.lock()));
            let _held = b.lock();
            let _ = other.lock();
        }

        #[test]
        #[should_panic(expected = "was locked at")]
        fn no_order_goes_in_a_circle() {
            let (a, b, c) = (Mutex::new(A), Mutex::new(B), Mutex::new(C));
            drop((a.lock(), b.lock()));
            drop((b.lock(), c.lock()));
            let _held = c.lock();
            let _ = a.lock();
        }

        #[test]
        #[should_panic(expected = "is locked at")]
        fn two_of_a_type_are_not_held_at_once() {
            let (one, other) = (Mutex::new(A), Mutex::new(A));
            let _held = one.lock();
            let _ = other.lock();
        }

        #[test]
        fn what_was_let_go_of_is_not_held() {
            let (a, b) = (Mutex::new(A), Mutex::new(B));
            let first = a.lock();
            let second = b.lock();
            drop(first);
            drop(second);
            drop(b.lock());
            drop(a.lock());
            let held = b.lock();
            assert!(a.try_lock().is_some(), "who does not wait may try");
            drop(held);
        }
    }
}
