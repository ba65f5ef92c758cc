//! The names that an object answers to.

use std::collections::{HashMap, hash_map::Entry};

use holdfast_core::TokenObject;

/// Every name by which any of `entries` can be asked for; `None` where several answer to it.
pub(crate) fn index<T: Clone>(entries: impl IntoIterator<Item = (TokenObject, T)>) -> HashMap<TokenObject, Option<T>> {
    let mut index = HashMap::new();
    for (object, value) in entries {
        let TokenObject { label, id } = object;
        let mut names = Vec::with_capacity(3);
        if label.is_some() && id.is_some() {
            names.push(TokenObject { label: label.clone(), id: id.clone() });
        }
        names.extend(label.map(|label| TokenObject { label: Some(label), id: None }));
        names.extend(id.map(|id| TokenObject { label: None, id: Some(id) }));
        for name in names {
            match index.entry(name) {
                Entry::Vacant(vacant) => {
                    vacant.insert(Some(value.clone()));
                }
                Entry::Occupied(mut occupied) => {
                    occupied.insert(None);
                }
            }
        }
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_several_answer_to_is_nobodys() {
        let object = |label: &str, id: u8| TokenObject { label: Some(label.into()), id: Some(vec![id]) };
        let index = index([(object("a", 1), 1), (object("a", 2), 2), (object("b", 3), 3)]);
        assert_eq!(index[&TokenObject::labelled("a")], None);
        assert_eq!(index[&TokenObject::labelled("b")], Some(3));
        assert_eq!(index[&object("a", 2)], Some(2));
        assert_eq!(index[&TokenObject { label: None, id: Some(vec![1]) }], Some(1));
        assert!(!index.contains_key(&object("b", 1)));
    }
}
