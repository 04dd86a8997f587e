//! Pages of a list.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use super::{TaskId, TaskSummary};

/// A position between two tasks of a list: the complete sort key of one of them. It stays valid
/// whatever is recorded or deleted meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The task's `created_at`.
    pub created_at: DateTime<Utc>,
    /// The task's id.
    pub id: TaskId,
}

/// The earliest time that PostgreSQL keeps, in seconds since 1970: in the year 4714 BC. Its latest
/// time is later than any [`DateTime`].
const EARLIEST: i64 = -210_866_803_200;

impl Cursor {
    /// A position, or `None` if no task can have been created at that time.
    pub fn new(created_at: DateTime<Utc>, id: TaskId) -> Option<Self> {
        (created_at.timestamp() >= EARLIEST).then_some(Self { created_at, id })
    }

    fn for_task(task: &TaskSummary) -> Self {
        Self { created_at: task.created_at, id: task.id.clone() }
    }
}

/// Where a page starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageStart {
    /// At the offset that follows from the page's number.
    FromNumber,
    /// After a task: the page's first task is the next older one.
    After(Cursor),
    /// Before a task: the page's last task is the next newer one.
    Before(Cursor),
}

/// A page of a list: a number from 1, and a size from 1 to 1,000 tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    number: u64,
    per_page: u16,
    start: PageStart,
}

impl PageRequest {
    /// Most tasks on one page.
    pub const MAX_PER_PAGE: u16 = 1000;

    /// A page, or `None` if a number is out of range. A page past the end of a list is in range,
    /// and empty.
    pub fn new(number: u64, per_page: u16) -> Option<Self> {
        let in_range = number >= 1 && (1..=Self::MAX_PER_PAGE).contains(&per_page);
        in_range.then_some(Self { number, per_page, start: PageStart::FromNumber })
    }

    /// The same page with another start. With a cursor, the number is only what the caller believes
    /// it to be.
    #[must_use]
    pub fn starting_at(self, start: PageStart) -> Self {
        Self { start, ..self }
    }

    /// Where it starts.
    pub fn start(&self) -> &PageStart {
        &self.start
    }

    /// Its number, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// How many tasks come before this page, by its number. Saturates: no list is that long.
    pub fn offset(&self) -> i64 {
        let offset = (self.number - 1).saturating_mul(u64::from(self.per_page));
        i64::try_from(offset).unwrap_or(i64::MAX)
    }

    /// Most tasks on the page.
    pub fn limit(&self) -> i64 {
        i64::from(self.per_page)
    }

    /// How many pages hold `total` tasks; 0 for an empty list.
    pub fn pages_for(&self, total: i64) -> i64 {
        let per_page = self.limit();
        total / per_page + i64::from(total % per_page != 0)
    }
}

/// One page of a list with the total of the whole list, both of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskPage {
    /// The page's tasks, newest first.
    pub items: Vec<TaskSummary>,
    /// How many tasks match the filter, on all pages.
    pub total: i64,
    /// The next page, of older tasks, starts after this cursor.
    pub next: Option<Cursor>,
    /// The previous page, of newer tasks, ends before this cursor.
    pub previous: Option<Cursor>,
    /// Tasks of `items` whose title and result are too long to be read with the page, with the
    /// bytes of both. At least one of the two is `None` in `items`.
    pub unread: HashMap<TaskId, usize>,
}

impl TaskPage {
    /// The only page of an empty list.
    pub fn empty() -> Self {
        Self { items: Vec::new(), total: 0, next: None, previous: None, unread: HashMap::new() }
    }

    /// A page of the tasks that were found for a request, in any order.
    ///
    /// A request with a cursor fetches one task more than the page holds; a task too many says that
    /// there are more.
    pub fn new(mut items: Vec<TaskSummary>, total: i64, request: &PageRequest) -> Self {
        items.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
        let limit = usize::from(request.per_page);
        let has_more = items.len() > limit;
        let count = i64::try_from(items.len()).unwrap_or(i64::MAX);
        let (has_newer, has_older) = match request.start {
            PageStart::FromNumber => {
                let offset = request.offset();
                (offset > 0, offset.saturating_add(count) < total)
            }
            PageStart::After(_) => {
                items.truncate(limit);
                (true, has_more)
            }
            PageStart::Before(_) => {
                items.drain(..usize::from(has_more));
                (has_more, true)
            }
        };
        Self {
            next: items.last().filter(|_| has_older).map(Cursor::for_task),
            previous: items.first().filter(|_| has_newer).map(Cursor::for_task),
            items,
            total,
            unread: HashMap::new(),
        }
    }

    /// The page without the long texts of these tasks.
    #[must_use]
    pub fn with_unread(self, unread: HashMap<TaskId, usize>) -> Self {
        Self { unread, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_at_the_edges() {
        assert_eq!(PageRequest::new(0, 20), None);
        assert_eq!(PageRequest::new(1, 0), None);
        assert_eq!(PageRequest::new(1, 1001), None);
        let page = |number, per_page| PageRequest::new(number, per_page).expect("in range");
        assert_eq!(page(1, 20).offset(), 0);
        assert_eq!(page(3, 20).offset(), 40);
        assert_eq!(page(u64::MAX, 50).offset(), i64::MAX);
        // The public contract's own examples, and the empty list.
        for (total, per_page, pages) in [
            (6, 5, 2),
            (8, 2, 4),
            (1000, 3, 334),
            (278, 3, 93),
            (39, 20, 2),
            (40, 20, 2),
            (0, 20, 0),
        ] {
            assert_eq!(
                page(1, per_page).pages_for(total),
                pages,
                "{total} tasks, {per_page} a page"
            );
        }
    }
}
