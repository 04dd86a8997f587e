//! Pages of a list.

use chrono::{DateTime, Utc};

use super::{TaskId, TaskSummary};

/// A place between two tasks of a list: the sort key of one of them, all of it and nothing else. It stays where it is,
/// whatever is recorded or deleted meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The task's `created_at`.
    pub created_at: DateTime<Utc>,
    /// The task's id.
    pub id: TaskId,
}

impl Cursor {
    fn of(task: &TaskSummary) -> Self {
        Self { created_at: task.created_at, id: task.id.clone() }
    }
}

/// Where a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// Where its number says.
    Number,
    /// After a task: with the next older one.
    After(Cursor),
    /// So that it ends before a task: with the next newer one.
    Before(Cursor),
}

/// Which page of a list: numbered from 1, of 1 to 1,000 tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    page: u64,
    per_page: u16,
    position: Position,
}

impl PageRequest {
    /// Most tasks on one page.
    pub const MAX_PER_PAGE: u16 = 1000;

    /// A page, or `None` where a number is out of range. A page past the end of a list is in range, and empty.
    pub fn new(page: u64, per_page: u16) -> Option<Self> {
        let in_range = page >= 1 && (1..=Self::MAX_PER_PAGE).contains(&per_page);
        in_range.then_some(Self { page, per_page, position: Position::Number })
    }

    /// The same page, but beginning somewhere else; its number is then what the caller takes it for.
    #[must_use]
    pub fn at(self, position: Position) -> Self {
        Self { position, ..self }
    }

    /// Where it begins.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.page
    }

    /// How many tasks come before this page, by its number. Saturates: no list is that long.
    pub fn offset(&self) -> i64 {
        let offset = (self.page - 1).saturating_mul(u64::from(self.per_page));
        i64::try_from(offset).unwrap_or(i64::MAX)
    }

    /// How many tasks the page holds at most.
    pub fn limit(&self) -> i64 {
        i64::from(self.per_page)
    }

    /// How many pages hold `total` tasks: 0 where there are none.
    pub fn pages_for(&self, total: i64) -> i64 {
        let per_page = self.limit();
        total / per_page + i64::from(total % per_page != 0)
    }
}

/// One page of a list, and how many tasks the whole list has: both from one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskPage {
    /// The page's tasks, newest first.
    pub items: Vec<TaskSummary>,
    /// How many tasks match the filter, on all pages.
    pub total: i64,
    /// Where the next page, of older tasks, begins: after this.
    pub next: Option<Cursor>,
    /// Where the previous page, of newer tasks, ends: before this.
    pub previous: Option<Cursor>,
}

impl TaskPage {
    /// The page of a list that has no tasks.
    pub fn empty() -> Self {
        Self { items: Vec::new(), total: 0, next: None, previous: None }
    }

    /// A page of the tasks that were found for a request, in any order: one more than it holds where it began at a
    /// cursor and there are more.
    pub fn new(mut items: Vec<TaskSummary>, total: i64, request: &PageRequest) -> Self {
        items.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
        let limit = usize::from(request.per_page);
        let has_more = items.len() > limit;
        let count = i64::try_from(items.len()).unwrap_or(i64::MAX);
        let (has_newer, has_older) = match request.position {
            Position::Number => {
                let offset = request.offset();
                (offset > 0, offset.saturating_add(count) < total)
            }
            Position::After(_) => {
                items.truncate(limit);
                (true, has_more)
            }
            Position::Before(_) => {
                items.drain(..usize::from(has_more));
                (has_more, true)
            }
        };
        Self {
            next: items.last().filter(|_| has_older).map(Cursor::of),
            previous: items.first().filter(|_| has_newer).map(Cursor::of),
            items,
            total,
        }
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
        let page = |page, per_page| PageRequest::new(page, per_page).expect("in range");
        assert_eq!(page(1, 20).offset(), 0);
        assert_eq!(page(3, 20).offset(), 40);
        assert_eq!(page(u64::MAX, 50).offset(), i64::MAX);
        // The public contract's own examples, and the empty list.
        for (total, per_page, pages) in
            [(6, 5, 2), (8, 2, 4), (1000, 3, 334), (278, 3, 93), (39, 20, 2), (40, 20, 2), (0, 20, 0)]
        {
            assert_eq!(page(1, per_page).pages_for(total), pages, "{total} tasks, {per_page} a page");
        }
    }
}
