//! Bandwidth limits as the reference plugin `bandwidth` takes them: four numbers, in bits and bits per second, as the
//! capability argument of the same name or in the configuration itself, which wins.

use serde::Deserialize;
use serde_json::Value;

use super::error::Failure;
use crate::bandwidth::{Bandwidth, Limit};

/// The bursts that mean "nobody said": Kubernetes' annotations have none, and containerd, CRI-O and the kubelet's own
/// runtime of old fill in the largest number. Taken at their word they let a pod of 10 Mbit/s send 512 MB before the limit
/// is felt (kubernetes/kubernetes#90838, containernetworking/cni.dev#136).
pub(crate) const UNSTATED: [u64; 3] = [u32::MAX as u64, u32::MAX as u64 * 8 - 1, i32::MAX as u64];

/// The numbers as they come; containerd encodes its Go type without tags.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(super) struct Stated {
    #[serde(rename = "ingressRate", alias = "IngressRate")]
    ingress_rate: Option<Value>,
    #[serde(rename = "ingressBurst", alias = "IngressBurst")]
    ingress_burst: Option<Value>,
    #[serde(rename = "egressRate", alias = "EgressRate")]
    egress_rate: Option<Value>,
    #[serde(rename = "egressBurst", alias = "EgressBurst")]
    egress_burst: Option<Value>,
}

impl Stated {
    /// The limits of a pod: those of the configuration if it has any of the four keys, else the runtime's.
    pub(super) fn limits(&self, runtime: Option<&Stated>) -> Result<Bandwidth, Failure> {
        let stated = if *self == Stated::default() { runtime.unwrap_or(self) } else { self };
        Ok(Bandwidth {
            ingress: limit("ingressRate", &stated.ingress_rate, "ingressBurst", &stated.ingress_burst)?,
            egress: limit("egressRate", &stated.egress_rate, "egressBurst", &stated.egress_burst)?,
        })
    }
}

fn limit(
    rate_key: &'static str,
    rate: &Option<Value>,
    burst_key: &'static str,
    burst: &Option<Value>,
) -> Result<Option<Limit>, Failure> {
    let (rate, burst) = ((rate_key, number(rate_key, rate)?), (burst_key, number(burst_key, burst)?));
    checked(rate, burst).map_err(|(field, problem)| Failure::Conf { field, problem })
}

/// The limit that two numbers mean, each with its name; none if both are 0. Refuses what the reference plugin refuses, and a rate
/// that is less than a byte: the name of what is wrong, and how it is.
pub(crate) fn checked(
    (rate_key, rate): (&'static str, u64),
    (burst_key, burst): (&'static str, u64),
) -> Result<Option<Limit>, (&'static str, String)> {
    match (rate, burst) {
        (0, 0) => Ok(None),
        (0, _) => Err((burst_key, format!("is set, and {rate_key} is not"))),
        (_, 0) => Err((rate_key, format!("is set, and {burst_key} is not"))),
        (rate, _) if rate < 8 => Err((rate_key, format!("is {rate} bits per second, want at least 8"))),
        (_, burst) if burst / 8 >= u64::from(u32::MAX) => {
            Err((burst_key, format!("is {burst} bits, want less than 4 GiB")))
        }
        (rate, burst) => {
            let burst = Some(burst).filter(|burst| !UNSTATED.contains(burst));
            Ok(Some(Limit { rate, burst }))
        }
    }
}

fn number(field: &'static str, value: &Option<Value>) -> Result<u64, Failure> {
    let Some(value) = value else { return Ok(0) };
    let problem = || format!("is {value}, want a whole number of bits");
    value.as_u64().ok_or_else(|| Failure::Conf { field, problem: problem() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stated(json: &str) -> Stated {
        serde_json::from_str(json).unwrap()
    }

    fn refused(json: &str) -> String {
        stated(json).limits(None).unwrap_err().to_string()
    }

    #[test]
    fn both_spellings_are_read() {
        for json in [
            r#"{"ingressRate":80,"ingressBurst":160,"egressRate":800,"egressBurst":1600}"#,
            r#"{"IngressRate":80,"IngressBurst":160,"EgressRate":800,"EgressBurst":1600}"#,
        ] {
            let limits = Stated::default().limits(Some(&stated(json))).unwrap();
            assert_eq!(limits.ingress, Some(Limit { rate: 80, burst: Some(160) }));
            assert_eq!(limits.egress, Some(Limit { rate: 800, burst: Some(1600) }));
        }
    }

    #[test]
    fn zero_and_null_are_no_limit() {
        for json in ["{}", r#"{"IngressRate":0,"IngressBurst":0}"#, r#"{"egressRate":null}"#] {
            assert!(stated(json).limits(None).unwrap().is_unlimited(), "{json}");
        }
    }

    #[test]
    fn the_configuration_wins_over_the_runtime() {
        let (conf, runtime) = (
            stated(r#"{"ingressRate":8,"ingressBurst":8}"#),
            stated(r#"{"EgressRate":16,"EgressBurst":16}"#),
        );
        let limits = conf.limits(Some(&runtime)).unwrap();
        assert_eq!((limits.ingress.map(|limit| limit.rate), limits.egress), (Some(8), None));
    }

    #[test]
    fn the_largest_number_is_no_burst() {
        for burst in UNSTATED {
            let limits =
                stated(&format!(r#"{{"ingressRate":8,"ingressBurst":{burst}}}"#)).limits(None).unwrap();
            assert_eq!(limits.ingress, Some(Limit { rate: 8, burst: None }), "{burst}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (json, text) in [
            (r#"{"ingressRate":1000}"#, "ingressRate is set, and ingressBurst is not"),
            (r#"{"egressBurst":1000}"#, "egressBurst is set, and egressRate is not"),
            (r#"{"egressRate":7,"egressBurst":8}"#, "egressRate is 7 bits per second, want at least 8"),
            (
                r#"{"egressRate":8,"egressBurst":34359738360}"#,
                "egressBurst is 34359738360 bits, want less than 4 GiB",
            ),
            (r#"{"ingressRate":-1,"ingressBurst":8}"#, "ingressRate is -1, want a whole number of bits"),
            (
                r#"{"ingressRate":"1M","ingressBurst":8}"#,
                "ingressRate is \"1M\", want a whole number of bits",
            ),
        ] {
            assert_eq!(refused(json), format!("network configuration: {text}"));
        }
    }
}
