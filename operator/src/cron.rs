//! Schedules as in a CronJob: five fields, or a name that stands for them.

use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// Names of months and days of the week, in the order of their numbers.
const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// How far to look for the next time: 29 February on a certain weekday comes within 40 years.
const DAYS_AHEAD: u32 = 41 * 366;

/// A schedule is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("schedule {text:?}: {why}")]
pub struct Error {
    text: String,
    why: String,
}

/// When something is due; one bit per minute, hour, day, month and day of the week.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// A day has to fit both fields when one of them is `*`, else either (crontab(5)).
    both: bool,
}

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// With the field that is not understood.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::fields(text).map_err(|why| Error { text: text.to_owned(), why })
    }

    fn fields(text: &str) -> Result<Self, String> {
        let written = match text {
            "@hourly" => "0 * * * *",
            "@daily" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            "@yearly" => "0 0 1 1 *",
            other => other,
        };
        let parts: Vec<_> = written.split(' ').collect();
        let [minute, hour, day, month, weekday] = parts[..] else {
            return Err(format!("{} fields, not 5", parts.len()));
        };
        let mut weekdays = field(weekday, 0, 7, &DAYS)?;
        // Sunday is 0 and 7.
        weekdays |= weekdays >> 7 & 1;
        let schedule = Self {
            minutes: field(minute, 0, 59, &[])?,
            hours: field(hour, 0, 23, &[])?,
            days: field(day, 1, 31, &[])?,
            months: field(month, 1, 12, &MONTHS)?,
            weekdays,
            both: day.starts_with(['*', '?']) || weekday.starts_with(['*', '?']),
        };
        match schedule.next(Timestamp::UNIX_EPOCH, &TimeZone::UTC) {
            Some(_) => Ok(schedule),
            None => Err("no such day".to_owned()),
        }
    }

    /// The first time after `after` in `zone`. A time that a change of clocks leaves out comes as much later; one that it
    /// repeats comes once.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let start = after.to_zoned(zone.clone()).date();
        let mut date = start;
        for _ in 0..DAYS_AHEAD {
            if self.on(date) {
                let times = (0..24).filter(|hour| self.hours >> hour & 1 == 1).flat_map(|hour| {
                    (0..60).filter(|minute| self.minutes >> minute & 1 == 1).map(move |minute| (hour, minute))
                });
                for (hour, minute) in times {
                    let civil = date.to_datetime(Time::new(hour, minute, 0, 0).ok()?);
                    let time = zone.to_ambiguous_zoned(civil).compatible().ok()?.timestamp();
                    if time > after {
                        return Some(time);
                    }
                }
            }
            date = date.checked_add(1.day()).ok()?;
        }
        None
    }

    fn on(&self, date: Date) -> bool {
        let day = self.days >> date.day() & 1 == 1;
        let weekday = self.weekdays >> date.weekday().to_sunday_zero_offset() & 1 == 1;
        let fits = if self.both { day && weekday } else { day || weekday };
        self.months >> date.month() & 1 == 1 && fits
    }
}

/// The bits of one field: parts with commas between, each `*`, `N` or `N-M`, and `/STEP`.
fn field(text: &str, least: u32, most: u32, names: &[&str]) -> Result<u64, String> {
    let number = |text: &str| -> Result<u32, String> {
        let lower = text.to_ascii_lowercase();
        let named = names.iter().position(|name| *name == lower);
        let value = match named {
            Some(position) => u32::try_from(position).unwrap_or_default() + least,
            None => text.parse().map_err(|_| format!("{text:?} is no number"))?,
        };
        match (least..=most).contains(&value) {
            true => Ok(value),
            false => Err(format!("{value} is not between {least} and {most}")),
        }
    };
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = part.split_once('/').unwrap_or((part, "1"));
        let step: usize = step.parse().map_err(|_| format!("step {step:?} is no number"))?;
        if step == 0 {
            return Err("a step of 0".to_owned());
        }
        let (first, last) = match range.split_once('-') {
            _ if range == "*" || range == "?" => (least, most),
            Some((first, last)) => (number(first)?, number(last)?),
            // "5/15" is every 15 from 5 on.
            None if part.contains('/') => (number(range)?, most),
            None => (number(range)?, number(range)?),
        };
        if first > last {
            return Err(format!("{range:?} ends before it starts"));
        }
        bits |= (first..=last).step_by(step).fold(0_u64, |bits, value| bits | 1 << value);
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(cron: &str, after: &str, zone: &str) -> String {
        let zone = TimeZone::get(zone).unwrap();
        Schedule::parse(cron).unwrap().next(after.parse().unwrap(), &zone).unwrap().to_string()
    }

    #[test]
    fn the_next_time_is_found() {
        for (cron, after, expected) in [
            ("30 4 * * 1", "2026-01-01T00:00:00Z", "2026-01-05T04:30:00Z"),
            ("30 4 * * mon", "2026-01-05T04:30:00Z", "2026-01-12T04:30:00Z"),
            ("*/15 * * * *", "2026-01-01T00:00:01Z", "2026-01-01T00:15:00Z"),
            ("5/20 * * * *", "2026-01-01T00:05:00Z", "2026-01-01T00:25:00Z"),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 13 * 5", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 0 * * 7", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("0 9-17/4 * * *", "2026-01-01T09:00:00Z", "2026-01-01T13:00:00Z"),
            ("0 0 1 Jan,JUL ?", "2026-01-02T00:00:00Z", "2026-07-01T00:00:00Z"),
            ("@hourly", "2026-12-31T23:00:00Z", "2027-01-01T00:00:00Z"),
            ("@yearly", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ] {
            assert_eq!(next(cron, after, "UTC"), expected, "{cron} after {after}");
        }
    }

    #[test]
    fn a_time_is_one_of_its_zone_whatever_clocks_do() {
        assert_eq!(next("0 4 * * *", "2026-07-01T00:00:00Z", "Europe/Berlin"), "2026-07-01T02:00:00Z");
        // 2:30 does not exist on this day.
        assert_eq!(next("30 2 * * *", "2026-03-28T12:00:00Z", "Europe/Berlin"), "2026-03-29T01:30:00Z");
        // 2:30 comes twice on this one.
        assert_eq!(next("30 2 * * *", "2026-10-24T12:00:00Z", "Europe/Berlin"), "2026-10-25T00:30:00Z");
        assert_eq!(next("30 2 * * *", "2026-10-25T00:30:00Z", "Europe/Berlin"), "2026-10-26T01:30:00Z");
    }

    #[test]
    fn what_is_no_schedule_says_why() {
        for (cron, why) in [
            ("* * * *", "4 fields, not 5"),
            ("60 * * * *", "60 is not between 0 and 59"),
            ("* * 0 * *", "0 is not between 1 and 31"),
            ("*/0 * * * *", "a step of 0"),
            ("5-1 * * * *", "\"5-1\" ends before it starts"),
            ("a * * * *", "\"a\" is no number"),
            ("0 0 31 2 *", "no such day"),
        ] {
            let error = Schedule::parse(cron).unwrap_err();
            assert_eq!(error.to_string(), format!("schedule {cron:?}: {why}"));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_strange(text in "[-0-9a-z*/,?@ ]{0,40}", seconds in 0_i64..4_000_000_000) {
            if let Ok(schedule) = Schedule::parse(&text) {
                let after = Timestamp::from_second(seconds).unwrap();
                if let Some(next) = schedule.next(after, &TimeZone::UTC) {
                    assert!(next > after);
                }
            }
        }
    }
}
