//! The most steps that a backtracking engine such as PCRE takes to match an expression.
//!
//! A part of an expression costs `steps` and `scan` each time that the engine enters it, and returns control in up to
//! `ways` different ways if the rest keeps failing. A repetition has one way only if the rest can't begin with a byte that
//! it repeats: giving bytes back is then pointless, and fails at once. Nothing is matched. Pure: no I/O, no clock.

mod bytes;

use regex_syntax::ast::{self, Ast};

use bytes::{Bytes, class_set_bytes, negate_if, perl_class_bytes};

/// The bytes of path and query that HAProxy compares. The access log shows as many.
pub(super) const SUBJECT_BYTES: u64 = 1024;

/// The worst of 6,300 random expressions within this took PCRE2 10.42 (with JIT) 5.7 ms, with the worst of eleven URLs.
const MAX_STEPS: u64 = 6 * SUBJECT_BYTES * SUBJECT_BYTES;

/// `Cost::steps` counts in quarters: PCRE compares literals several at a time.
const QUARTERS_PER_STEP: u64 = 4;

/// The part of an expression that takes too long.
pub(super) struct TooSlow {
    /// The part's place in the expression.
    pub(super) span: ast::Span,
    /// The reason, for the expression's writer.
    pub(super) rule: &'static str,
}

const SEVERAL_WAYS: &str = "HAProxy would take too long: this repeats what can match in several ways";
const EMPTY: &str = "HAProxy would take too long: this repeats what can match nothing";
const TOO_MANY: &str = "HAProxy would take too long up to here: begin with `^`, or repeat less";

/// Refuses an expression that takes HAProxy too long on some URL.
pub(super) fn check_cost(tree: &Ast) -> Result<(), TooSlow> {
    // PCRE tries an expression without an anchor at each byte.
    let starts = if is_anchored(tree) { 1 } else { SUBJECT_BYTES };
    let end = Next { bytes: Bytes::NONE, accepts: true };
    Budget { most: MAX_STEPS / starts }.cost_of(tree, end).map(drop)
}

/// True if a match can begin at the first byte only. PCRE itself anchors a leading `.*`.
fn is_anchored(tree: &Ast) -> bool {
    match tree {
        Ast::Assertion(assertion) => assertion.kind == ast::AssertionKind::StartLine,
        Ast::Group(group) => is_anchored(&group.ast),
        Ast::Alternation(alternation) => alternation.asts.iter().all(is_anchored),
        Ast::Concat(concat) => concat.asts.iter().find(|item| !matches!(item, Ast::Flags(_))).is_some_and(is_anchored),
        Ast::Repetition(repetition) => {
            repetition.op.kind == ast::RepetitionKind::ZeroOrMore && matches!(*repetition.ast, Ast::Dot(_))
        }
        _ => false,
    }
}

/// The rest of the expression behind a part.
#[derive(Clone, Copy)]
struct Next {
    /// The bytes that the rest can begin with.
    bytes: Bytes,
    /// True if the rest never fails, so that the match can end here.
    accepts: bool,
}

/// The beginning of a part of the expression.
struct First {
    bytes: Bytes,
    /// True if the part can match nothing, so that the rest may begin in its place.
    is_transparent: bool,
}

impl First {
    fn opaque(bytes: Bytes) -> Self {
        Self { bytes, is_transparent: false }
    }
}

fn first_bytes(part: &Ast) -> First {
    match part {
        Ast::Empty(_) | Ast::Flags(_) => First { bytes: Bytes::NONE, is_transparent: true },
        // Nothing comes after `$`. The bytes that the other assertions ask for aren't known here.
        Ast::Assertion(assertion) if assertion.kind == ast::AssertionKind::EndLine => First::opaque(Bytes::NONE),
        Ast::Assertion(_) | Ast::ClassUnicode(_) => First::opaque(Bytes::ALL),
        Ast::Dot(_) => First::opaque(Bytes::from_predicate(|byte| byte != b'\n')),
        Ast::Literal(literal) => First::opaque(Bytes::from_predicate(|byte| char::from(byte) == literal.c)),
        Ast::ClassPerl(class) => First::opaque(perl_class_bytes(class)),
        Ast::ClassBracketed(class) => First::opaque(negate_if(class.negated, class_set_bytes(&class.kind))),
        Ast::Group(group) => first_bytes(&group.ast),
        Ast::Alternation(alternation) => {
            alternation.asts.iter().map(first_bytes).fold(First::opaque(Bytes::NONE), |all, one| First {
                bytes: all.bytes.union_with(&one.bytes),
                is_transparent: all.is_transparent || one.is_transparent,
            })
        }
        Ast::Concat(concat) => {
            let mut all = First { bytes: Bytes::NONE, is_transparent: true };
            for item in concat.asts.iter().map(first_bytes) {
                all.bytes = all.bytes.union_with(&item.bytes);
                if !item.is_transparent {
                    return First { is_transparent: false, ..all };
                }
            }
            all
        }
        Ast::Repetition(repetition) => {
            let inner = first_bytes(&repetition.ast);
            let (least, _) = repeat_bounds(&repetition.op.kind);
            First { is_transparent: inner.is_transparent || least == 0, ..inner }
        }
    }
}

/// The beginning of an alternation's branch, by which branches exclude each other.
struct BranchStart {
    /// The literals at the beginning, in lower case.
    literals: String,
    first: First,
}

impl BranchStart {
    fn from_branch(branch: &Ast) -> Self {
        let items = if let Ast::Concat(concat) = branch { &concat.asts[..] } else { std::slice::from_ref(branch) };
        let literals = items.iter().map_while(|item| match item {
            Ast::Literal(literal) => Some(literal.c.to_ascii_lowercase()),
            _ => None,
        });
        Self { literals: literals.collect(), first: first_bytes(branch) }
    }

    /// True if both can match at the same place.
    fn can_meet(&self, other: &Self) -> bool {
        let agree = self.literals.chars().zip(other.literals.chars()).all(|(one, other)| one == other);
        let empty = self.first.is_transparent || other.first.is_transparent;
        agree && (empty || self.first.bytes.shares_byte_with(&other.first.bytes))
    }
}

/// The least and the most rounds of a repetition. Without a bound, the most is `u64::MAX`.
pub(super) fn repeat_bounds(kind: &ast::RepetitionKind) -> (u64, u64) {
    let (least, most) = match kind {
        ast::RepetitionKind::ZeroOrOne => (0, 1),
        ast::RepetitionKind::ZeroOrMore => (0, u64::MAX),
        ast::RepetitionKind::OneOrMore => (1, u64::MAX),
        ast::RepetitionKind::Range(ast::RepetitionRange::Exactly(n)) => (u64::from(*n), u64::from(*n)),
        ast::RepetitionKind::Range(ast::RepetitionRange::AtLeast(n)) => (u64::from(*n), u64::MAX),
        ast::RepetitionKind::Range(ast::RepetitionRange::Bounded(m, n)) => (u64::from(*m), u64::from(*n)),
    };
    (least.min(SUBJECT_BYTES), if most == u64::MAX { most } else { most.min(SUBJECT_BYTES) })
}

/// The cost of a part of the expression each time that the engine enters it.
#[derive(Clone, Copy)]
struct Cost {
    /// The number of times that the part returns control if the rest keeps failing.
    ways: u64,
    /// The work in quarters of a step, apart from `scan`.
    steps: u64,
    /// The bytes that the part's repetitions read.
    scan: u64,
    /// The fewest bytes that the part matches.
    least: u64,
}

impl Cost {
    const NOTHING: Self = Self { ways: 1, steps: 0, scan: 0, least: 0 };

    fn total_steps(&self) -> u64 {
        (self.steps / QUARTERS_PER_STEP).saturating_add(self.scan)
    }

    fn multiplied_by(self, times: u64) -> Self {
        Self { steps: self.steps.saturating_mul(times), scan: self.scan.saturating_mul(times), ..self }
    }
}

/// The most steps that a match may take from one start.
struct Budget {
    most: u64,
}

impl Budget {
    fn cost_of(&self, part: &Ast, next: Next) -> Result<Cost, TooSlow> {
        match part {
            Ast::Empty(_) | Ast::Flags(_) => Ok(Cost::NOTHING),
            Ast::Assertion(_) => Ok(Cost { steps: QUARTERS_PER_STEP, ..Cost::NOTHING }),
            Ast::Literal(_) => Ok(Cost { steps: 1, least: 1, ..Cost::NOTHING }),
            Ast::Dot(_) | Ast::ClassUnicode(_) | Ast::ClassPerl(_) | Ast::ClassBracketed(_) => {
                Ok(Cost { steps: QUARTERS_PER_STEP, least: 1, ..Cost::NOTHING })
            }
            Ast::Group(group) => self.cost_of(&group.ast, next),
            Ast::Concat(concat) => self.cost_of_concat(&concat.asts, next),
            Ast::Alternation(alternation) => self.cost_of_alternation(&alternation.asts, next),
            Ast::Repetition(repetition) => self.cost_of_repetition(repetition, next),
        }
        .and_then(|cost| if cost.total_steps() <= self.most { Ok(cost) } else { Err(too_many(part)) })
    }

    fn cost_of_concat(&self, items: &[Ast], next: Next) -> Result<Cost, TooSlow> {
        let mut all = Cost::NOTHING;
        // The times that a group before this item gives back a round, so that the engine tries the item again and fails.
        let mut given_back = 1;
        for (item, next) in items.iter().zip(rests_of_concat(items, next)) {
            let cost = self.cost_of(item, next)?;
            // An item that can't fail ends the match, so the engine enters it once.
            let never_fails = next.accepts && first_bytes(item).is_transparent;
            let each = cost.multiplied_by(if never_fails { 1 } else { all.ways.saturating_mul(given_back) });
            given_back = match item {
                _ if next.accepts => 1,
                // An item that can match nothing passes each failure on to the next one.
                _ if first_bytes(item).is_transparent => given_back.max(rounds_of_group(item)),
                _ => rounds_of_group(item),
            };
            all = Cost {
                ways: all.ways.saturating_mul(cost.ways),
                steps: all.steps.saturating_add(each.steps),
                // Repetitions with one way read the URL's bytes one after another: no byte twice.
                scan: all.scan.max(each.scan),
                least: all.least.saturating_add(cost.least),
            };
            if all.total_steps() > self.most {
                return Err(too_many(item));
            }
        }
        Ok(all)
    }

    fn cost_of_alternation(&self, branches: &[Ast], next: Next) -> Result<Cost, TooSlow> {
        let costs = branches.iter().map(|branch| self.cost_of(branch, next)).collect::<Result<Vec<_>, _>>()?;
        let starts: Vec<BranchStart> = branches.iter().map(BranchStart::from_branch).collect();
        let ways = starts.iter().map(|start| ways_of_branches(start, &costs, &starts)).max();
        Ok(Cost {
            ways: ways.unwrap_or(1),
            // PCRE may try every branch before one matches.
            steps: costs.iter().fold(QUARTERS_PER_STEP, |sum, cost| sum.saturating_add(cost.steps)),
            scan: costs.iter().fold(0, |sum, cost| sum.saturating_add(cost.scan)),
            least: costs.iter().map(|cost| cost.least).min().unwrap_or_default(),
        })
    }

    fn cost_of_repetition(&self, repetition: &ast::Repetition, next: Next) -> Result<Cost, TooSlow> {
        let (least, most) = repeat_bounds(&repetition.op.kind);
        let inner = &*repetition.ast;
        let begins = first_bytes(inner);
        let is_several = most > 1;
        let after =
            if is_several { Next { bytes: begins.bytes.union_with(&next.bytes), accepts: false } } else { next };
        let each = self.cost_of(inner, after)?;
        if is_several && each.least == 0 {
            return Err(TooSlow { span: repetition.span, rule: EMPTY });
        }
        let gives_back = !next.accepts && begins.bytes.shares_byte_with(&next.bytes);
        if !is_several {
            let skipped = u64::from(least == 0 && (gives_back || next.accepts));
            return Ok(Cost { ways: each.ways.saturating_add(skipped), least: each.least * least, ..each });
        }
        if each.ways > 1 {
            // Without a bound the ways grow with each byte of the URL.
            return if most == u64::MAX {
                Err(TooSlow { span: repetition.span, rule: SEVERAL_WAYS })
            } else {
                Ok(multiply_ways(each, least, most))
            };
        }
        // Each round takes at least one byte of the URL, so the URL bounds the rounds too.
        let rounds = most.min(SUBJECT_BYTES / each.least.max(1)).max(least);
        let reads = if least == most && each.scan == 0 { 0 } else { rounds };
        Ok(Cost {
            ways: if gives_back { rounds - least + 1 } else { 1 },
            steps: each.steps.saturating_mul(least.max(1)).saturating_add(QUARTERS_PER_STEP),
            scan: reads.saturating_mul(each.steps.div_ceil(QUARTERS_PER_STEP)).saturating_add(each.scan),
            least: each.least.saturating_mul(least),
        })
    }
}

/// The rest of the expression behind each of these items.
fn rests_of_concat(items: &[Ast], end: Next) -> Vec<Next> {
    let mut rests = Vec::with_capacity(items.len());
    let mut rest = end;
    for item in items.iter().rev() {
        rests.push(rest);
        let first = first_bytes(item);
        rest = if first.is_transparent {
            Next { bytes: first.bytes.union_with(&rest.bytes), ..rest }
        } else {
            Next { bytes: first.bytes, accepts: false }
        };
    }
    rests.reverse();
    rests
}

/// The ways of all branches that can match at the place where the branch with this start matches.
fn ways_of_branches(start: &BranchStart, costs: &[Cost], starts: &[BranchStart]) -> u64 {
    let together = costs.iter().zip(starts).filter(|(_, other)| start.can_meet(other));
    together.fold(0, |ways, (cost, _)| ways.saturating_add(cost.ways))
}

/// The most rounds of a repeated group. 1 of anything else. PCRE gives back the rounds of a group one by one, even if the
/// rest can't begin there. For single characters and classes it does so only if that can help.
fn rounds_of_group(item: &Ast) -> u64 {
    match item {
        Ast::Group(group) => rounds_of_group(&group.ast),
        Ast::Concat(concat) => concat.asts.last().map_or(1, rounds_of_group),
        Ast::Repetition(repetition) if matches!(*repetition.ast, Ast::Group(_)) => {
            let (least, most) = repeat_bounds(&repetition.op.kind);
            most.min(SUBJECT_BYTES).saturating_sub(least).saturating_add(1)
        }
        _ => 1,
    }
}

/// The cost of a bounded repetition of a part with several ways: each round multiplies them.
fn multiply_ways(each: Cost, least: u64, most: u64) -> Cost {
    let (mut ways, mut entered, mut power) = (u64::from(least == 0), 0_u64, 1_u64);
    for round in 1..=most {
        entered = entered.saturating_add(power);
        power = power.saturating_mul(each.ways);
        if round >= least {
            ways = ways.saturating_add(power);
        }
    }
    Cost { ways, least: each.least.saturating_mul(least), ..each.multiplied_by(entered) }
}

fn too_many(part: &Ast) -> TooSlow {
    TooSlow { span: *part.span(), rule: TOO_MANY }
}
