//! `trialfs gc`: has the mount give up what dead nodes left of checkpoint directories, and says
//! what.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::fs::checkpoints::Swept;
use crate::mount::{client, point, registry, table};

use super::args::GcArgs;

/// A bucket of a hundred million keys takes longer; what is not done by then goes on in the daemon.
const WAIT_S_MAX: Duration = Duration::from_secs(3600);

/// Returns when it is done.
pub fn run(args: &GcArgs) -> Result<()> {
    let point = point::locate(&args.dir)?;
    let shown = point.display();
    let table = table::read().context("can't read /proc/self/mountinfo")?;
    let user = table::at(&table, &point).and_then(|mounted| mounted.user);
    let note = registry::note_of(user.unwrap_or_default(), &point)
        .ok_or_else(|| anyhow!("{shown} is not a trialfs mount; `trialfs status` lists them"))?;
    let asked = (args.older_than, args.dry_run);
    let swept =
        client::sweep(&note.socket, asked, WAIT_S_MAX).context("the daemon can't be asked")?;
    let swept = swept.map_err(|reason| anyhow!("{shown}: {reason}"))?;
    let swept: Swept = serde_json::from_value(swept).context("the daemon can't be understood")?;
    print!("{}", report(&swept, args.dry_run));
    Ok(())
}

fn report(swept: &Swept, dry_run: bool) -> String {
    let (given_up, cleared) = match dry_run {
        true => ("would give up", "would remove the records of"),
        false => ("gave up", "removed the records of"),
    };
    let mut lines: Vec<String> = Vec::new();
    lines.extend(swept.given_up.iter().map(|name| format!("{given_up} {name}")));
    lines.extend(swept.cleared.iter().map(|name| format!("{cleared} {name}")));
    let (some, left) = (swept.given_up.len() + swept.cleared.len(), swept.undecided);
    lines
        .push(format!("{some} directories; {left} undecided ones stay, {} skipped", swept.skipped));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_what_goes_and_counts_what_stays() {
        let given_up = vec!["a/b".to_owned()];
        let swept = Swept { given_up, undecided: 2, ..Swept::default() };
        let want = "would give up a/b\n1 directories; 2 undecided ones stay, 0 skipped\n";
        assert_eq!(report(&swept, true), want);
    }
}
