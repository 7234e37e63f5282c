//! What is written of what was counted.

use std::time::Duration;

use overlane_config::name::EnvironmentId;
use overlane_config::route::Via;

use super::*;
use crate::metrics::{Counted, Labels, Method, OVERLAY_LABELS, Observed, Origin, counted, observe};
use crate::plane::Gate;

fn labels(overlay: &str) -> Labels {
    Labels {
        origin: Origin::Outside,
        overlay: overlay.parse().ok(),
        service: "web".parse().ok(),
        environment: None,
        via: Some(Via::Overlay),
        class: 2,
        method: Method::of("GET"),
    }
}

#[test]
fn overlays_beyond_the_bound_share_one_label_value() {
    let mut meter = Meter::default();
    let ids: Vec<EnvironmentId> = (0..7).map(|number| format!("o{number}").parse().expect("id")).collect();
    for id in &ids {
        meter.requests.insert(labels(id.as_str()), Observed { count: 2, ..Observed::default() });
    }
    let control = ControlFigures {
        expires: ids.iter().map(|id| (id.clone(), 1.0)).collect(),
        ..ControlFigures::default()
    };
    for (bound, others) in [(0, 14), (3, 8), (6, 2), (7, 0), (1000, 0)] {
        let text = render(&meter, &control, bound);
        let own = bound.min(ids.len());
        let series = |name: &str| text.matches(&format!("{name}{{")).count();
        assert_eq!(series("overlane_requests_total"), own + usize::from(others > 0), "{text}");
        assert_eq!(series("overlane_overlay_expires_timestamp_seconds"), own, "{text}");
        let shared = format!("overlay=\"_other\",service=\"web\",via=\"overlay\"}} {others}\n");
        assert_eq!(text.contains(&shared), others > 0, "{text}");
    }
}

#[test]
fn buckets_are_cumulative() {
    let (overlay, service) = ("a".parse().expect("id"), "web".parse().expect("name"));
    let gate = Gate::of_tests();
    let request = Counted::of_tests(&overlay, &service, &gate);
    observe(&request, Duration::from_millis(2), Some(Duration::from_micros(60)));
    observe(&request, Duration::from_millis(200), None);
    let text = render(&counted(), &ControlFigures::default(), OVERLAY_LABELS);
    assert!(
        text.contains(
            "overlane_request_duration_seconds_bucket{service=\"web\",via=\"overlay\",le=\"0.0025\"} 1"
        ),
        "{text}"
    );
    assert!(text.contains("le=\"0.25\"} 2") && text.contains("_count{service=\"web\",via=\"overlay\"} 2"));
    let added = ["bucket{le=\"0.00005\"} 0", "bucket{le=\"0.000075\"} 1", "sum 0.00006", "count 1"];
    for line in added.map(|end| format!("overlane_added_latency_seconds_{end}")) {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
}
