//! The text format itself, which the library knows.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::{Kind, Shown};

pub(super) fn encode(shown: &[Shown]) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Collected(shown.to_vec())));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Collected(Vec<Shown>);

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.iter().try_for_each(|it| family(&mut encoder, it))
    }
}

fn family(encoder: &mut DescriptorEncoder<'_>, shown: &Shown) -> Result<(), fmt::Error> {
    // The library puts `_total` behind the name of a counter.
    let (name, kind) = match shown.kind {
        Kind::Counter => (
            shown.name.strip_suffix("_total").unwrap_or(shown.name),
            MetricType::Counter,
        ),
        Kind::Gauge => (shown.name, MetricType::Gauge),
    };
    let mut family = encoder.encode_descriptor(name, shown.help, None, kind)?;
    for sample in &shown.samples {
        let labels: Vec<(&str, &str)> = sample
            .labels
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let place = family.encode_family(&labels)?;
        match shown.kind {
            Kind::Counter => ConstCounter::new(sample.value).encode(place)?,
            Kind::Gauge => {
                let value = i64::try_from(sample.value).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(place)?;
            }
        }
    }
    Ok(())
}
