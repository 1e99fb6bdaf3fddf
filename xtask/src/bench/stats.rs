//! Figures of several runs as one: the median, and the least and most beside it.

/// The middle figure, the upper of the two when their count is even; not a number when there are none.
pub(crate) fn median(list: &[f64]) -> f64 {
    let mut list = list.to_vec();
    list.sort_by(f64::total_cmp);
    list.get(list.len() / 2).copied().unwrap_or(f64::NAN)
}

/// `median [least-most]`; a dash for no figures.
pub(crate) fn spread(list: &[f64], digits: usize) -> String {
    if list.is_empty() {
        return "-".to_owned();
    }
    let least = list.iter().copied().fold(f64::NAN, f64::min);
    let most = list.iter().copied().fold(f64::NAN, f64::max);
    format!("{:.digits$} [{least:.digits$}-{most:.digits$}]", median(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_figure() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_spread_names_its_ends() {
        assert_eq!(spread(&[3.0, 1.0, 2.0], 1), "2.0 [1.0-3.0]");
        assert_eq!(spread(&[], 1), "-");
    }
}
