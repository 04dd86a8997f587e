//! Pages of a list.

use super::TaskSummary;

/// Which page of a list: numbered from 1, of 1 to 1,000 tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRequest {
    page: u64,
    per_page: u16,
}

impl PageRequest {
    /// Most tasks on one page.
    pub const MAX_PER_PAGE: u16 = 1000;

    /// A page, or `None` where a number is out of range. A page past the end of a list is in range, and empty.
    pub fn new(page: u64, per_page: u16) -> Option<Self> {
        (page >= 1 && (1..=Self::MAX_PER_PAGE).contains(&per_page)).then_some(Self { page, per_page })
    }

    /// How many tasks come before this page. Saturates: no list is that long.
    pub fn offset(self) -> i64 {
        let offset = (self.page - 1).saturating_mul(u64::from(self.per_page));
        i64::try_from(offset).unwrap_or(i64::MAX)
    }

    /// How many tasks the page holds at most.
    pub fn limit(self) -> i64 {
        i64::from(self.per_page)
    }

    /// How many pages hold `total` tasks: 0 where there are none.
    pub fn pages_for(self, total: i64) -> i64 {
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
}

impl TaskPage {
    /// The page of a list that has no tasks.
    pub fn empty() -> Self {
        Self { items: Vec::new(), total: 0 }
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
