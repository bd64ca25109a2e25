//! Lists that commands read page by page: as a table for people, or as JSON, one a line, for programs.

use prost::Name;

use super::client::to_json;
use super::show::{Cell, Table};
use super::{Failure, say};

/// How much of a list is wanted.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct PageArgs {
    /// How many to show at most, newest first
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = super::flags::some)]
    limit: u64,
    /// Show all there are
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

/// A list as it is read and shown.
pub(super) struct Pages {
    place: Place,
    table: Table,
    is_json: bool,
}

/// How much is still wanted, and from where.
#[derive(Debug)]
struct Place {
    left: u64,
    token: Option<String>,
}

/// More in a page than that are not given.
const PAGE_MAX: u64 = 500;

impl PageArgs {
    /// Begins a list.
    pub(super) fn pages(self, table: Table, is_json: bool) -> Pages {
        Pages { place: self.place(), table, is_json }
    }

    const fn place(self) -> Place {
        Place { left: if self.all { u64::MAX } else { self.limit }, token: Some(String::new()) }
    }
}

impl Pages {
    /// Size and token of the next page to ask for; `None` at the end, where whoever reads learns that it is not all.
    pub(super) fn next(&mut self) -> Option<(i32, String)> {
        let next = self.place.next();
        if next.is_none() && self.place.token.is_some() {
            super::note("there are more: --limit N shows N, --all shows all");
        }
        next
    }

    /// Shows a page that came, and notes where the next begins.
    pub(super) fn show<M: Name>(
        &mut self,
        page: &[M],
        next_page_token: String,
        row: impl Fn(&M) -> Vec<Cell>,
    ) -> Result<(), Failure> {
        self.place.take(page.len(), next_page_token);
        match self.is_json {
            true => page.iter().try_for_each(|one| say(&to_json(one)?)),
            false => self.table.print(&page.iter().map(row).collect::<Vec<_>>()),
        }
    }
}

impl Place {
    fn next(&mut self) -> Option<(i32, String)> {
        let size = self.left.min(PAGE_MAX);
        let token = if size == 0 { None } else { self.token.take() };
        token.map(|token| (i32::try_from(size).unwrap_or(i32::MAX), token))
    }

    fn take(&mut self, count: usize, next_page_token: String) {
        self.left = self.left.saturating_sub(count as u64);
        self.token = Some(next_page_token).filter(|token| !token.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_to_its_limit_or_its_end() {
        let pages = |limit, all| PageArgs { limit, all }.place();
        let mut limited = pages(600, false);
        assert_eq!(limited.next(), Some((500, String::new())));
        limited.take(500, "a".to_owned());
        assert_eq!(limited.next(), Some((100, "a".to_owned())));
        limited.take(100, "b".to_owned());
        assert_eq!(limited.next(), None);
        let mut all = pages(1, true);
        assert_eq!(all.next(), Some((500, String::new())));
        all.take(0, "a".to_owned());
        assert_eq!(all.next(), Some((500, "a".to_owned())), "an empty page is not the end");
        all.take(3, String::new());
        assert_eq!(all.next(), None);
    }
}
