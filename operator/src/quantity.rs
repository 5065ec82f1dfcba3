//! Kubernetes' quantities, as numbers that can be compared.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Suffixes and what they multiply by, in thousandths.
const SUFFIXES: [(&str, i128); 14] = [
    ("Ki", 1000 << 10),
    ("Mi", 1000 << 20),
    ("Gi", 1000 << 30),
    ("Ti", 1000 << 40),
    ("Pi", 1000 << 50),
    ("Ei", 1000 << 60),
    ("m", 1),
    ("k", 1_000_000),
    ("M", 1_000_000_000),
    ("G", 1_000_000_000_000),
    ("T", 1_000_000_000_000_000),
    ("P", 1_000_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000_000),
    ("", 1000),
];

/// The quantity in thousandths, rounded up; none when it is not one. Exponents, which the schema refuses, are not read.
pub fn thousandths(quantity: &Quantity) -> Option<i128> {
    let (suffix, unit) = SUFFIXES.iter().find(|(suffix, _)| quantity.0.ends_with(suffix))?;
    let number = quantity.0.strip_suffix(suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || fraction.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    let parts = whole.parse::<i128>().ok()? * scale + fraction.parse::<i128>().ok()?;
    let product = parts.checked_mul(*unit)?;
    Some((product + scale - 1) / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_with_every_suffix() {
        for (text, expected) in [
            ("0", Some(0)),
            ("2", Some(2_000)),
            ("1500m", Some(1_500)),
            ("0.5", Some(500)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("0.0001", Some(1)),
            ("1k", Some(1_000_000)),
            ("1Ki", Some(1_024_000)),
            ("16Ei", Some(16 * (1000 << 60))),
            ("", None),
            ("m", None),
            ("1e3", None),
            ("-1", None),
            ("1.", None),
            (".5", None),
            ("9999999999999999999Ei", None),
        ] {
            assert_eq!(thousandths(&Quantity(text.into())), expected, "{text:?}");
        }
    }
}
