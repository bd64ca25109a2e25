//! Pages of lists: their size, and the opaque tokens that lead from one to the next.
//!
//! A token holds where its page ended (the last id, and what the list is sorted by before it) and a digest of the request's filters, so that it continues that list and no
//! other. It grants nothing: whoever alters one reads another part of the same list.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::domain::Problem;

const SIZE_DEFAULT: u32 = 50;
const SIZE_MAX: u32 = 500;
const ID_BYTES: usize = 16;
/// 64 bits are ample against a mistaken token, which is all that the digest is for.
const DIGEST_BYTES: usize = 8;

/// The entries that a page may have: 0 means 50, above 500 means 500.
pub(super) fn page_size(asked: i32) -> Result<u32, Problem> {
    match u32::try_from(asked) {
        Ok(0) => Ok(SIZE_DEFAULT),
        Ok(size) => Ok(size.min(SIZE_MAX)),
        Err(_) => Err(Problem::new("is negative; allowed is 0 (which means 50) to 500")),
    }
}

/// Cuts what was read, one entry more than a page has, to the page; and tells after which entry the next one begins.
/// `end` is where the reading stopped short of the list's end by itself.
pub(super) fn cut<T, I>(
    mut entries: Vec<T>,
    end: Option<I>,
    size: u32,
    id_of: impl Fn(&T) -> I,
) -> (Vec<T>, Option<I>) {
    let size = size as usize;
    if entries.len() <= size {
        return (entries, end);
    }
    entries.truncate(size);
    let last = entries.last().map(id_of);
    (entries, last)
}

/// The filters of one list request, as far as they make it another list.
pub(super) struct Binding(Sha256);

impl Binding {
    /// The binding of a list without filters.
    pub(super) fn of(list: &'static str) -> Self {
        Self(Sha256::new()).with(list)
    }

    /// Adds a filter's value. The order of calls tells the filters apart.
    pub(super) fn with(mut self, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.0.update((value.len() as u64).to_be_bytes());
        self.0.update(value);
        self
    }

    /// Adds a filter of many values.
    pub(super) fn with_all<V: AsRef<[u8]>>(mut self, values: impl IntoIterator<Item = V>) -> Self {
        let mut count: u64 = 0;
        for value in values {
            self = self.with(value);
            count += 1;
        }
        self.with(count.to_be_bytes())
    }

    /// The token that continues after `last`.
    pub(super) fn token(&self, last: Uuid) -> String {
        self.token_at(last.as_bytes())
    }

    /// The token that continues after a place of another form.
    pub(super) fn token_at(&self, place: &[u8]) -> String {
        BASE64.encode([place, &self.digest()].concat())
    }

    /// Where a request with `token` goes on; `None` at the first page.
    pub(super) fn parse(&self, token: &str) -> Result<Option<Uuid>, Problem> {
        Ok(self.parse_at::<ID_BYTES>(token)?.map(Uuid::from_bytes))
    }

    /// Where a request with `token` goes on, in the form that [`Self::token_at`] was given.
    pub(super) fn parse_at<const BYTES: usize>(&self, token: &str) -> Result<Option<[u8; BYTES]>, Problem> {
        if token.is_empty() {
            return Ok(None);
        }
        let decoded = BASE64.decode(token).ok();
        let place =
            decoded.as_deref().and_then(|bytes| bytes.strip_suffix(&self.digest())).map(<[u8; BYTES]>::try_from);
        match place {
            Some(Ok(place)) => Ok(Some(place)),
            _ => Err(Problem::new(
                "is not a token of this list; allowed is next_page_token of the page before, with the same filters",
            )),
        }
    }

    fn digest(&self) -> [u8; DIGEST_BYTES] {
        let whole = self.0.clone().finalize();
        std::array::from_fn(|place| whole[place])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_contract() {
        for (asked, size) in [(0, 50), (1, 1), (500, 500), (501, 500), (i32::MAX, 500)] {
            assert_eq!(page_size(asked), Ok(size));
        }
        assert!(page_size(-1).is_err());
    }

    #[test]
    fn a_page_that_ends_the_list_leads_nowhere() {
        let id_of = |entry: &u32| *entry;
        assert_eq!(cut(vec![3, 2, 1], Some(1), 2, id_of), (vec![3, 2], Some(2)));
        assert_eq!(cut(vec![2, 1], None, 2, id_of), (vec![2, 1], None));
        assert_eq!(cut(vec![9], Some(4), 2, id_of), (vec![9], Some(4)));
    }

    #[test]
    fn a_token_continues_its_own_list_alone() {
        let list = |tenant: &str, types: &[&str]| Binding::of("ListThings").with(tenant).with_all(types);
        let id = Uuid::from_u128(0x0189_0a5d_ac96_774b_bcce_b302_099a_8057);
        let token = list("a", &["x", "y"]).token(id);
        assert_eq!(list("a", &["x", "y"]).parse(&token), Ok(Some(id)));
        assert_eq!(list("a", &["x", "y"]).parse(""), Ok(None));
        for other in [list("b", &["x", "y"]), list("a", &["xy"]), list("ax", &["y"]), list("a", &[])] {
            assert!(other.parse(&token).is_err());
        }
        for garbage in ["x", "!!!!", &token[1..], &format!("{token}AAAA"), &"A".repeat(1_000)] {
            assert!(list("a", &["x", "y"]).parse(garbage).is_err(), "{garbage}");
        }
    }
}
