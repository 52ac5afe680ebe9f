//! Room that outlives what stood in it.

/// An empty list in the room of another one, which held borrows that have ended, say: without an allocation
/// where the items are laid out alike.
pub fn recycle<T, U>(mut list: Vec<T>) -> Vec<U> {
    list.clear();
    list.into_iter().map(|_| unreachable!("the list was cleared")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_stays() {
        let list: Vec<&str> = Vec::with_capacity(10);
        let room = list.as_ptr().addr();
        let list: Vec<&'static str> = recycle(list);
        assert!(list.is_empty() && list.capacity() == 10 && list.as_ptr().addr() == room);
    }
}
