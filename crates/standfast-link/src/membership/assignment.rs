//! Who mirrors what: every partition to one member, as evenly as it goes, and away from its member only if it must.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Partitions by topic, as ranges (first, last) in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parts(BTreeMap<String, Vec<(i32, i32)>>);

/// One partition.
pub(crate) type Part = (String, i32);

impl Parts {
    pub(crate) fn topics(&self) -> &BTreeMap<String, Vec<(i32, i32)>> {
        &self.0
    }

    /// All of them; what a broken member claims beyond `limit` is left out.
    pub(crate) fn list(&self, limit: usize) -> impl Iterator<Item = Part> {
        let each = self.0.iter().flat_map(|(topic, ranges)| {
            ranges
                .iter()
                .flat_map(move |(first, last)| (*first..=*last).map(move |p| (topic.clone(), p)))
        });
        each.take(limit)
    }

    pub(crate) fn count(&self) -> usize {
        let lengths = self.0.values().flatten();
        lengths
            .map(|(first, last)| {
                usize::try_from(i64::from(*last) - i64::from(*first) + 1).unwrap_or(0)
            })
            .sum()
    }
}

impl FromIterator<Part> for Parts {
    fn from_iter<I: IntoIterator<Item = Part>>(parts: I) -> Self {
        let sorted: BTreeSet<Part> = parts.into_iter().collect();
        let mut topics: BTreeMap<String, Vec<(i32, i32)>> = BTreeMap::new();
        for (topic, partition) in sorted {
            let ranges = topics.entry(topic).or_default();
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == partition => *last = partition,
                _ => ranges.push((partition, partition)),
            }
        }
        Self(topics)
    }
}

/// What a member had, and since when.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) member: String,
    /// Generation in which it was given that; of two that claim the same partition, the later one has it.
    pub(crate) generation: i32,
    pub(crate) had: BTreeSet<Part>,
}

/// As [`assign`], but all partitions of the topics in `wholes` go to the member named there.
pub(crate) fn assign_wholes(
    parts: &BTreeSet<Part>,
    claims: &[Claim],
    wholes: &BTreeMap<&str, &str>,
) -> BTreeMap<String, BTreeSet<Part>> {
    let (whole, shared): (BTreeSet<Part>, BTreeSet<Part>) =
        (parts.iter().cloned()).partition(|(topic, _)| wholes.contains_key(topic.as_str()));
    let mut given = assign(&shared, claims);
    for part in whole {
        let member = wholes.get(part.0.as_str());
        if let Some(theirs) = member.and_then(|member| given.get_mut(*member)) {
            theirs.insert(part);
        }
    }
    given
}

/// Gives `parts` to the members. Sticky: only as many move as balance asks for.
pub(crate) fn assign(parts: &BTreeSet<Part>, claims: &[Claim]) -> BTreeMap<String, BTreeSet<Part>> {
    let mut given: BTreeMap<String, BTreeSet<Part>> = claims
        .iter()
        .map(|claim| (claim.member.clone(), BTreeSet::new()))
        .collect();
    if given.is_empty() {
        return given;
    }
    let mut free = Vec::new();
    for part in parts {
        let holder = claims
            .iter()
            .filter(|claim| claim.had.contains(part))
            .max_by_key(|claim| (claim.generation, std::cmp::Reverse(&claim.member)));
        match holder.and_then(|claim| given.get_mut(&claim.member)) {
            Some(theirs) => drop(theirs.insert(part.clone())),
            None => free.push(part.clone()),
        }
    }
    let (each, extra) = (parts.len() / given.len(), parts.len() % given.len());
    // Those that have most may keep one more than the others.
    let mut by_size: Vec<(usize, String)> =
        given.iter().map(|(m, p)| (p.len(), m.clone())).collect();
    by_size.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let quotas: Vec<(String, usize)> = by_size
        .into_iter()
        .enumerate()
        .map(|(n, (_, member))| (member, each + usize::from(n < extra)))
        .collect();
    for (member, quota) in &quotas {
        if let Some(theirs) = given.get_mut(member) {
            free.extend(take_away(theirs, *quota));
        }
    }
    free.sort();
    let mut free = free.into_iter();
    // In turn, so that the partitions of one topic are spread.
    loop {
        let mut gave = false;
        for (member, quota) in &quotas {
            let Some(theirs) = given.get_mut(member).filter(|p| p.len() < *quota) else {
                continue;
            };
            match free.next() {
                Some(part) => gave |= theirs.insert(part),
                None => return given,
            }
        }
        if !gave {
            return given;
        }
    }
}

/// Takes what is above the quota, from each topic alike.
fn take_away(theirs: &mut BTreeSet<Part>, quota: usize) -> Vec<Part> {
    if theirs.len() <= quota {
        return Vec::new();
    }
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut ranked: Vec<(usize, &Part)> = theirs
        .iter()
        .map(|part| {
            let place = places.entry(part.0.as_str()).or_default();
            *place += 1;
            (*place, part)
        })
        .collect();
    ranked.sort_by(|a, b| b.cmp(a));
    let surplus = theirs.len() - quota;
    let taken: Vec<Part> = ranked
        .into_iter()
        .take(surplus)
        .map(|(_, part)| part.clone())
        .collect();
    for part in &taken {
        theirs.remove(part);
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_topic_that_is_restored_is_one_members() {
        let all = parts(&[("lost", 4), ("other", 4)]);
        let claims = ["a", "b"].map(|member| Claim {
            member: member.to_owned(),
            generation: -1,
            had: BTreeSet::new(),
        });
        let given = assign_wholes(&all, &claims, &BTreeMap::from([("lost", "b")]));
        let count =
            |member: &str, topic: &str| given[member].iter().filter(|p| p.0 == topic).count();
        assert_eq!((count("a", "lost"), count("b", "lost")), (0, 4));
        assert_eq!((count("a", "other"), count("b", "other")), (2, 2));
    }

    fn parts(topics: &[(&str, i32)]) -> BTreeSet<Part> {
        let each = topics
            .iter()
            .flat_map(|(t, n)| (0..*n).map(move |p| ((*t).to_owned(), p)));
        each.collect()
    }

    fn claim(member: &str, generation: i32, had: BTreeSet<Part>) -> Claim {
        Claim {
            member: member.to_owned(),
            generation,
            had,
        }
    }

    #[test]
    fn ranges_say_the_same_in_fewer_words() {
        let mut all = parts(&[("a", 3), ("b", 1)]);
        all.insert(("a".to_owned(), 7));
        let ranges: Parts = all.iter().cloned().collect();
        assert_eq!(
            serde_json::to_string(&ranges).unwrap(),
            r#"{"a":[[0,2],[7,7]],"b":[[0,0]]}"#
        );
        assert_eq!(
            (
                ranges.count(),
                ranges.list(99).count(),
                ranges.list(2).count()
            ),
            (5, 5, 2)
        );
        assert_eq!(ranges.list(99).collect::<BTreeSet<_>>(), all);
    }

    #[test]
    fn a_new_member_gets_its_share_of_every_topic() {
        let all = parts(&[("a", 4), ("b", 4)]);
        let given = assign(
            &all,
            &[claim("x", 1, all.clone()), claim("y", 0, BTreeSet::new())],
        );
        for member in ["x", "y"] {
            for topic in ["a", "b"] {
                let count = given[member].iter().filter(|(t, _)| t == topic).count();
                assert_eq!(count, 2, "{given:?}");
            }
        }
    }

    #[test]
    fn of_two_claims_the_later_counts() {
        let all = parts(&[("a", 2)]);
        let one = || BTreeSet::from([("a".to_owned(), 0)]);
        let given = assign(&all, &[claim("x", 4, one()), claim("y", 5, one())]);
        assert!(given["y"].contains(&("a".to_owned(), 0)), "{given:?}");
    }

    proptest! {
        #[test]
        fn every_partition_has_one_member_all_have_as_many_and_few_move(
            counts in proptest::collection::vec(0i32..9, 0..5),
            members in 1usize..6,
            claimed in proptest::collection::vec((0usize..6, 0usize..40), 0..60),
        ) {
            let names: Vec<String> = (0..counts.len()).map(|n| format!("t{n}")).collect();
            let named: Vec<(&str, i32)> = names.iter().map(String::as_str).zip(counts).collect();
            let all = parts(&named);
            let list: Vec<&Part> = all.iter().collect();
            let mut claims: Vec<Claim> = (0..members).map(|m| claim(&format!("m{m}"), 1, BTreeSet::new())).collect();
            for (member, part) in claimed {
                if let (Some(claim), Some(part)) = (claims.get_mut(member), list.get(part)) {
                    claim.had.insert((*part).clone());
                }
            }
            let given = assign(&all, &claims);
            let total: usize = given.values().map(BTreeSet::len).sum();
            let union: BTreeSet<Part> = given.values().flatten().cloned().collect();
            prop_assert_eq!(total, all.len());
            prop_assert_eq!(&union, &all);
            let (least, most) = (given.values().map(BTreeSet::len).min(), given.values().map(BTreeSet::len).max());
            prop_assert!(most.unwrap_or(0) - least.unwrap_or(0) <= 1);
            // What is balanced stays as it is.
            let again: Vec<Claim> = given.iter().map(|(m, p)| claim(m, 2, p.clone())).collect();
            prop_assert_eq!(assign(&all, &again), given);
        }
    }
}
