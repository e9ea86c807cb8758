//! containerd: its version, and what its configuration says of weft. It is asked itself, so that imports, defaults and older versions of the
//! file are what they are to it.

use std::path::{Path, PathBuf};
use std::process::Command;

use toml::{Table, Value};

use super::super::args;
use super::Finding;

/// Where CNI's files are.
pub(super) struct Dirs {
    pub(super) conf: PathBuf,
    pub(super) bin: Vec<PathBuf>,
}

/// The plugins that hold the configuration of CRI, from 2.0 on and before.
const CRI: [&str; 2] = ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"];
const RUNTIME: &str = "io.containerd.weft.v1";

pub(super) fn look(args: &args::Doctor) -> (Dirs, Vec<Finding>) {
    let mut dirs = Dirs { conf: args.cni_conf_dir.clone(), bin: vec![args.cni_bin_dir.clone()] };
    let check = "containerd";
    let version = match ask(&args.containerd, &["--version"]) {
        Ok(text) => text,
        Err(err) => {
            let remedy = "install containerd 2.x, or name its program by --containerd; another runtime that calls CNI plugins needs none";
            return (dirs, vec![Finding::warning(check, err, remedy)]);
        }
    };
    let mut findings = vec![of_version(version.trim())];
    let config = args.containerd_config.to_string_lossy();
    let dumped = match args.containerd_config.exists() {
        true => ask(&args.containerd, &["--config", &config, "config", "dump"]),
        // It runs without a file too.
        false => ask(&args.containerd, &["config", "default"]),
    };
    let remedy = format!("{} config dump says what it does not understand", args.containerd.display());
    match dumped.and_then(|text| text.parse::<Table>().map_err(|err| err.to_string())) {
        Ok(config) => {
            let cri = cri(&config);
            dirs.take(cri);
            findings.extend(handlers(cri));
            findings.push(loopback(cri));
        }
        Err(err) => findings.push(Finding::problem("containerd config", err, remedy)),
    }
    (dirs, findings)
}

/// What the program prints.
pub(super) fn ask(program: &Path, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output();
    let output = output.map_err(|err| format!("{}: {err}", program.display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{} {}: {}: {}", program.display(), args.join(" "), output.status, said.trim()))
}

/// `containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7…`
fn of_version(text: &str) -> Finding {
    let check = "containerd";
    let version = text.split(' ').find_map(|word| {
        let mut numbers = word.trim_start_matches('v').split(['.', '-', '+']);
        Some((numbers.next()?.parse::<u32>().ok()?, numbers.next()?.parse::<u32>().ok()?))
    });
    match version {
        Some(version) if version < (1, 7) => {
            Finding::problem(check, text, "install containerd 2.1 or newer; 1.7 is the oldest that works")
        }
        Some((1, _)) => Finding::warning(
            check,
            text,
            "it knows no sandboxes of shims: pods have a pause container; install containerd 2.1 or newer",
        ),
        Some((2, 0)) => Finding::warning(
            check,
            text,
            "pods of shims end when it starts again; install containerd 2.1 or newer",
        ),
        Some(_) => Finding::ok(check, text),
        None => {
            Finding::warning(check, format!("version {text:?} is not understood"), "install containerd 2.x")
        }
    }
}

fn cri(config: &Table) -> Option<&Table> {
    let plugins = config.get("plugins")?.as_table()?;
    CRI.iter().find_map(|name| plugins.get(*name)?.as_table())
}

fn table<'t>(parent: Option<&'t Table>, key: &str) -> Option<&'t Table> {
    parent?.get(key)?.as_table()
}

impl Dirs {
    /// The lists of 2.1 and later win over the single names before.
    fn take(&mut self, cri: Option<&Table>) {
        let Some(cni) = table(cri, "cni") else { return };
        let text = |key: &str| cni.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        if let Some(dir) = text("conf_dir") {
            self.conf = dir.into();
        }
        let list = cni.get("bin_dirs").and_then(Value::as_array);
        let list: Vec<PathBuf> =
            list.into_iter().flatten().filter_map(Value::as_str).map(PathBuf::from).collect();
        if !list.is_empty() {
            self.bin = list;
        } else if let Some(dir) = text("bin_dir") {
            self.bin = vec![dir.into()];
        }
    }
}

/// Those whose runtime is weft. Without one, weft may still be the CNI plugin of others.
fn handlers(cri: Option<&Table>) -> Vec<Finding> {
    let check = "runtime handler";
    let containerd = table(cri, "containerd");
    let is_weft = |handler: &&Table| handler.get("runtime_type").and_then(Value::as_str) == Some(RUNTIME);
    let handlers: Vec<(&String, &Table)> = table(containerd, "runtimes")
        .into_iter()
        .flatten()
        .filter_map(|(name, handler)| Some((name, handler.as_table().filter(is_weft)?)))
        .collect();
    if handlers.is_empty() {
        let remedy = "packaging/containerd/weft.toml into /etc/containerd/conf.d (or `imports`), and restart containerd";
        return vec![Finding::warning(check, format!("none has runtime_type {RUNTIME}"), remedy)];
    }
    let default = containerd.and_then(|table| table.get("default_runtime_name")).and_then(Value::as_str);
    let of = |(name, handler): (&String, &Table)| {
        let is_default = if default == Some(name.as_str()) { ", the default" } else { "" };
        let sandboxer = handler.get("sandboxer").and_then(Value::as_str).unwrap_or("podsandbox");
        let found = format!("{name}{is_default}, sandboxer {sandboxer}");
        match sandboxer {
            "shim" => Finding::ok(check, found),
            _ => Finding::warning(
                check,
                found,
                "sandboxer = \"shim\" needs no pause container (containerd 2.x)",
            ),
        }
    };
    handlers.into_iter().map(of).collect()
}

fn loopback(cri: Option<&Table>) -> Finding {
    let check = "loopback";
    match table(cri, "cni").and_then(|cni| cni.get("use_internal_loopback")).and_then(Value::as_bool) {
        Some(true) => Finding::ok(check, "use_internal_loopback = true"),
        _ => Finding::warning(
            check,
            "use_internal_loopback is not set",
            "set it in [plugins.'io.containerd.cri.v1.runtime'.cni]: otherwise the plugin loopback is run for every pod",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        for (text, level) in [
            ("containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7", Level::Ok),
            ("containerd github.com/containerd/containerd v2.0.5", Level::Warning),
            ("containerd github.com/containerd/containerd 1.7.28 b98a3aa", Level::Warning),
            ("containerd github.com/containerd/containerd v1.6.33", Level::Problem),
            ("containerd github.com/containerd/containerd/v2 2.4.0-beta.0+unknown", Level::Ok),
            ("nonsense", Level::Warning),
        ] {
            assert_eq!(of_version(text).level, level, "{text}");
        }
    }

    #[test]
    fn the_configuration_of_either_version_is_understood() {
        for plugin in CRI {
            let text = format!(
                r#"
                [plugins.'{plugin}'.cni]
                conf_dir = "/c"
                bin_dir = "/b"
                bin_dirs = ["/b1", "/b2"]
                use_internal_loopback = true
                [plugins.'{plugin}'.containerd]
                default_runtime_name = "weft"
                [plugins.'{plugin}'.containerd.runtimes.runc]
                runtime_type = "io.containerd.runc.v2"
                [plugins.'{plugin}'.containerd.runtimes.weft]
                runtime_type = "io.containerd.weft.v1"
                sandboxer = "shim"
                [plugins.'{plugin}'.containerd.runtimes.weft-pause]
                runtime_type = "io.containerd.weft.v1"
                "#
            );
            let config: Table = text.parse().unwrap();
            let cri = cri(&config);
            let mut dirs = Dirs { conf: "/x".into(), bin: vec!["/y".into()] };
            dirs.take(cri);
            assert_eq!((dirs.conf, dirs.bin), ("/c".into(), vec!["/b1".into(), "/b2".into()]));
            assert_eq!(loopback(cri).level, Level::Ok);
            let found: Vec<_> = handlers(cri).into_iter().map(|one| (one.level, one.found)).collect();
            assert_eq!(
                found,
                [
                    (Level::Ok, "weft, the default, sandboxer shim".to_owned()),
                    (Level::Warning, "weft-pause, sandboxer podsandbox".to_owned()),
                ]
            );
        }
        assert_eq!(loopback(None).level, Level::Warning);
        assert_eq!(handlers(None)[0].level, Level::Warning);
    }
}
