//! A model of memory, of the log and of the programs, through which cuts go that pass pages over: what is taken for the memory at the cut must be that,
//! or be found out.

use std::collections::BTreeSet;
use std::iter;

use proptest::prelude::*;

use super::*;

/// Pages that are changed. There are others, so that it is worth it.
const FIRST: u64 = 1_000_000;
const COUNT: u64 = 700;

/// Something that happens to pages, by the process or behind its back.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write(u64),
    WriteUnseen(u64),
    Drop(u64, u64),
    DropUnseen(u64, u64),
}

#[derive(Clone, Debug, Default)]
struct Model {
    /// What each page holds. `None`: it is not there.
    values: Vec<Option<u64>>,
    protected: Vec<bool>,
    written: Vec<u64>,
    removed: Vec<Range<u64>>,
    /// By the programs, since the cut.
    noted: Option<BTreeSet<u64>>,
    next: u64,
}

impl Model {
    fn note(&mut self, page: u64) {
        if self.protected[page as usize] {
            self.noted.iter_mut().for_each(|noted| noted.extend([page]));
        }
    }

    fn set(&mut self, page: u64, value: Option<u64>) {
        (self.values[page as usize], self.protected[page as usize]) = (value, false);
    }

    fn act(&mut self, step: Step) {
        self.next += 1;
        match step {
            Step::Write(page) => {
                // No fault, if it can be written to.
                if self.protected[page as usize] || self.values[page as usize].is_none() {
                    self.written.push(FIRST + page);
                    self.note(page);
                }
                self.set(page, Some(self.next));
            }
            Step::WriteUnseen(page) => self.set(page, Some(self.next)),
            Step::Drop(page, count) => {
                let end = (page + count).min(COUNT);
                self.removed.push(FIRST + page..FIRST + end);
                (page..end).for_each(|page| self.note(page));
                (page..end).for_each(|page| self.set(page, None));
            }
            Step::DropUnseen(page, count) => (page..(page + count).min(COUNT)).for_each(|page| self.set(page, None)),
        }
    }

    fn protect(&mut self, page: u64) {
        self.protected[page as usize] = self.values[page as usize].is_some();
    }

    fn presence(&self) -> Presence {
        let there = (0..COUNT).filter(|&page| self.values[page as usize].is_some());
        let pages: PageSet = there.map(|page| FIRST + page..FIRST + page + 1).collect();
        let others = (PageRange { start: 0, count: LEAST }, Content::Data);
        let runs: Vec<_> = [others].into_iter().chain(pages.iter().map(|pages| (pages.clone().into(), Content::Data))).collect();
        let mut presence = Presence::default();
        presence.update(iter::once(0..FIRST + COUNT).collect(), &[PageRange { start: 0, count: FIRST + COUNT }], &runs);
        presence
    }
}

fn steps(most: usize, unseen: bool) -> impl Strategy<Value = Vec<Step>> {
    let step = (0..if unseen { 40u8 } else { 36 }, 0..COUNT, 1..30u64).prop_map(|(kind, page, count)| match kind {
        0..30 => Step::Write(page),
        30..36 => Step::Drop(page, count),
        36..38 => Step::WriteUnseen(page),
        _ => Step::DropUnseen(page, 1 + count / 10),
    });
    prop::collection::vec(step, 0..most)
}

/// Is what is taken for the memory at the cut right? `None`: it is found out that it may not be.
fn goes_through(absent: &[u64], until_cut: &[Step], after_cut: &[Step]) -> Option<bool> {
    let mut model = Model { values: vec![Some(0); COUNT as usize], protected: vec![false; COUNT as usize], ..Model::default() };
    absent.iter().for_each(|&page| model.values[page as usize] = None);
    (0..COUNT).for_each(|page| model.protect(page));
    let (presence, before) = (model.presence(), model.values.clone());
    until_cut.iter().for_each(|step| model.act(*step));

    let touched = Touched {
        written: model.written.drain(..).map(|page| page..page + 1).collect(),
        removed: model.removed.drain(..).collect(),
    };
    let all = PageRange { start: FIRST, count: COUNT };
    let within: PageSet = iter::once(0..FIRST + COUNT).collect();
    let passed = passed_over(&presence, &within, &touched);
    let truth = model.values.clone();
    let mut taken = before;
    for page in passed.leave(&[(all, false)]).into_iter().flat_map(|(pages, _)| pages.numbers()).map(|page| page - FIRST) {
        taken[page as usize] = truth[page as usize];
        model.protect(page);
    }
    for page in passed.written.iter().cloned().flatten().filter(|page| *page >= FIRST).map(|page| page - FIRST) {
        taken[page as usize] = truth[page as usize];
        model.protect(page);
    }
    model.noted = Some(BTreeSet::new());
    after_cut.iter().for_each(|step| model.act(*step));

    let clean = (0..COUNT).filter(|&page| model.protected[page as usize]).map(|page| FIRST + page..FIRST + page + 1);
    let clean: PageSet = clean.chain(iter::once(0..LEAST)).collect();
    let noted = |page: u64| model.noted.as_ref().is_some_and(|noted| noted.contains(&(page - FIRST)));
    if passed.over.iter().any(|pages| unproved(*pages, &clean, noted).is_some()) {
        return None;
    }
    Some(taken == truth)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_is_seen_is_enough(absent in prop::collection::vec(0..COUNT, 0..3), until in steps(60, false), after in steps(200, false)) {
        prop_assert_eq!(goes_through(&absent, &until, &after), Some(true));
    }

    #[test]
    fn what_is_not_seen_is_found_out(absent in prop::collection::vec(0..COUNT, 0..3), until in steps(60, true), after in steps(200, true)) {
        prop_assert_ne!(goes_through(&absent, &until, &after), Some(false));
    }
}

#[test]
fn a_write_that_nobody_saw_is_found_out() {
    let unseen = [Step::WriteUnseen(300)];
    assert_eq!(goes_through(&[], &unseen, &[]), None);
    // Whatever hides it later.
    for after in [Step::Write(300), Step::Drop(290, 20), Step::DropUnseen(300, 1), Step::WriteUnseen(300)] {
        assert_eq!(goes_through(&[], &unseen, &[after, Step::Write(300)]), None, "{after:?}");
    }
    assert_eq!(goes_through(&[], &[Step::DropUnseen(300, 1)], &[Step::Write(300)]), None);
    assert_eq!(goes_through(&[], &[Step::DropUnseen(300, 1), Step::Write(300)], &[]), Some(true), "its fault is in the log");
}
