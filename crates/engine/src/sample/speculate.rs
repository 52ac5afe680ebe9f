//! Self-speculation: where a sequence's last tokens stood before, the tokens that followed them are tried next.
//!
//! Tried tokens are computed in the step of the last known one, and every one of those rows draws with the random
//! number of its own position. A tried token is kept if the draw before it gave just that token, so the output is
//! what it would be without (Saxena 2023, prompt lookup decoding; here with draws instead of the likeliest token).

/// Tokens that must have stood before, in this order.
const MATCH: usize = 3;
/// How far back they are looked for.
const LOOK_BACK: usize = 4096;
/// Tokens that are tried at once, at most.
pub(crate) const TRIED_MAX: usize = 15;
/// The first guess is a short one.
const FIRST: usize = 2;
/// The longest pause after guesses that were wrong.
const PAUSE_MAX: usize = 64;

/// What has been learnt about guessing one sample's tokens.
#[derive(Clone, Debug)]
pub(crate) struct Speculation {
    tried: [u32; TRIED_MAX],
    count: usize,
    /// Tokens to try next time.
    length: usize,
    /// Tokens to draw before the next look.
    pause: usize,
    /// The pause after the next guess that is all wrong.
    next_pause: usize,
}

impl Default for Speculation {
    fn default() -> Self {
        Self { tried: [0; TRIED_MAX], count: 0, length: FIRST, pause: 0, next_pause: 1 }
    }
}

impl Speculation {
    /// Guesses up to `most` tokens that follow `prompt` and `drawn`; gives how many.
    pub(crate) fn guess(&mut self, prompt: &[u32], drawn: &[u32], most: usize) -> usize {
        self.count = 0;
        let length = self.length.min(most);
        if length == 0 {
            return 0;
        }
        if self.pause > 0 {
            self.pause -= 1;
            return 0;
        }
        let text = Text { prompt, drawn };
        let Some(follower) = text.follower() else {
            // Less would find only what is shorter than a match.
            self.pause = MATCH - 1;
            return 0;
        };
        for i in 0..length {
            let place = follower + i;
            // What follows the text is what was guessed before: a text that repeats goes on to.
            let guessed = place.checked_sub(text.len());
            self.tried[i] = guessed.map_or_else(|| text.at(place), |guess| self.tried[guess]);
        }
        self.count = length;
        length
    }

    /// Takes back all guesses but the first `count`.
    pub(crate) fn shorten(&mut self, count: usize) {
        self.count = self.count.min(count);
    }

    /// The tokens that are being tried.
    pub(crate) fn tried(&self) -> &[u32] {
        &self.tried[..self.count]
    }

    /// Learns how many of the tried tokens were right.
    pub(crate) fn learn(&mut self, right: usize) {
        if self.count == 0 {
            return;
        }
        if right == self.count {
            self.length = (2 * self.length).min(TRIED_MAX);
            self.next_pause = 1;
        } else if right > 0 {
            self.length = right;
        } else {
            self.length = 1;
            self.pause = self.next_pause;
            self.next_pause = (2 * self.next_pause).min(PAUSE_MAX);
        }
        self.count = 0;
    }
}

/// Prompt and completion, one after the other.
struct Text<'a> {
    prompt: &'a [u32],
    drawn: &'a [u32],
}

impl Text<'_> {
    fn len(&self) -> usize {
        self.prompt.len() + self.drawn.len()
    }

    fn at(&self, place: usize) -> u32 {
        match place.checked_sub(self.prompt.len()) {
            Some(place) => self.drawn[place],
            None => self.prompt[place],
        }
    }

    /// The place after the last earlier occurrence of the last tokens.
    fn follower(&self) -> Option<usize> {
        let end = self.len();
        let last = end.checked_sub(1)?;
        let before = |place: usize| (1..MATCH).all(|i| self.at(place - i) == self.at(last - i));
        let first = last.saturating_sub(LOOK_BACK).max(MATCH - 1);
        let token = self.at(last);
        let mut places = (first..last).rev();
        places.find(|&place| self.at(place) == token && before(place)).map(|place| place + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guessed(prompt: &[u32], drawn: &[u32], most: usize) -> Vec<u32> {
        let mut speculation = Speculation { length: TRIED_MAX, ..Speculation::default() };
        speculation.guess(prompt, drawn, most);
        speculation.tried().to_vec()
    }

    #[test]
    fn what_followed_the_same_tokens_is_tried() {
        assert_eq!(guessed(&[1, 2, 3, 4, 5, 9, 1, 2, 3], &[], 2), [4, 5]);
        assert_eq!(guessed(&[1, 2, 3, 4, 5, 9], &[1, 2, 3], 2), [4, 5]);
        assert_eq!(guessed(&[1, 2], &[3, 4, 1, 2, 3], 1), [4]);
    }

    #[test]
    fn the_last_occurrence_counts() {
        assert_eq!(guessed(&[1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], &[], 1), [5]);
    }

    #[test]
    fn a_text_that_repeats_goes_on_to() {
        assert_eq!(guessed(&[7, 7, 7, 7], &[], 5), [7; 5]);
        assert_eq!(guessed(&[1, 2, 1, 2, 1], &[], 5), [2, 1, 2, 1, 2]);
    }

    #[test]
    fn nothing_is_tried_without_a_match() {
        for text in [&[][..], &[1], &[1, 1], &[1, 2, 3], &[2, 2, 3, 4, 1, 2, 3]] {
            assert!(guessed(text, &[], 5).is_empty(), "{text:?}");
        }
        assert!(guessed(&[7; 8], &[], 0).is_empty());
    }

    #[test]
    fn wrong_guesses_become_rare_and_short() {
        let mut speculation = Speculation::default();
        let mut tries = Vec::new();
        for step in 0..400 {
            if speculation.guess(&[7; 8], &[], TRIED_MAX) > 0 {
                tries.push((step, speculation.tried().len()));
                speculation.learn(0);
            }
        }
        assert!(tries.len() < 14, "{tries:?}");
        assert!(tries[1..].iter().all(|(_, length)| *length == 1), "{tries:?}");
    }

    #[test]
    fn right_guesses_become_long() {
        let mut speculation = Speculation::default();
        let mut lengths = Vec::new();
        for _ in 0..5 {
            let count = speculation.guess(&[7; 8], &[], TRIED_MAX);
            lengths.push(count);
            speculation.learn(count);
        }
        assert_eq!(lengths, [2, 4, 8, 15, 15]);
    }
}
