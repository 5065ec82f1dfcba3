//! Steps with `--network egress` reach what the machine reaches, and the machine itself not.

use std::io::{BufRead, BufReader};
use std::process::Command;
use std::time::{Duration, Instant};

use cloister_e2e::cell::wait_for;
use cloister_e2e::installed::Installed;
use cloister_e2e::{Leftovers, lab, pod_images};

use crate::site::{Site, text};
use crate::world::{MACHINE, OUTSIDE, PORT, World};

/// Bytes of a download, so many that they are no single segment.
const PAGE: usize = 3 << 20;

/// Downloads by name; then every way to the machine that a step has; then a step that wants no network for itself.
fn dockerfile() -> String {
    format!(
        r#"FROM base
RUN wget -q -O /page http://files.example/page && wc -c </page | grep -x {PAGE}
RUN for at in {MACHINE}; do if echo | nc -w 2 "$at" {PORT}; then echo "reached $at"; exit 9; fi; done
RUN --network=none if wget -q -O- http://{OUTSIDE}/; then exit 9; fi
"#
    )
}

fn build(site: &Site, name: &str, dockerfile: &str, options: &[&str]) -> Command {
    let context = site.context(name, &[("Dockerfile", dockerfile)]);
    site.command(&context, &[&["-t", name], options].concat())
}

#[test]
fn an_ordinary_user_builds_with_a_network() {
    let world = World::new(vec![b'x'; PAGE]);
    let installed = Installed::new(&pod_images::archives(&[pod_images::BUSYBOX]).unwrap().remove(0));
    installed.add(&lab::builder_image().unwrap(), "builder.tar");
    let passt = lab::tool("passt-trixie", "passt").unwrap();
    let copy = ["-r".as_ref(), passt.ancestors().nth(2).unwrap().as_os_str()];
    let to = installed.folder().join("passt");
    assert!(Command::new("cp").args(copy).arg(&to).status().unwrap().success());
    installed.ok(&["image", "import", "base", "-i", "image.tar"]);
    std::fs::create_dir(installed.folder().join("context")).unwrap();
    std::fs::write(installed.folder().join("context/Dockerfile"), dockerfile()).unwrap();

    let before = Leftovers::below(installed.folder()).unwrap();
    let mut options = vec![
        "build",
        "-t",
        "app",
        "-m",
        "384m",
        "--cache-size",
        "400m",
        "--builder",
        "builder.tar",
        "context",
    ];
    let egress = egress();
    options.extend(egress.iter().map(String::as_str));
    let mut command = installed.cloister(&options);
    command.env("CLOISTER_PASST", to.join("bin/passt"));
    let built = world.output(command);
    assert!(built.status.success() && world.asked() == 0, "{} {}", world.asked(), text(&built));
    let read = installed.ok(&["run", "--rm", "app", "--", "sh", "-c", "wc -c </page"]);
    assert_eq!(read.trim(), PAGE.to_string());
    assert!(world.cell.processes().unwrap().is_empty(), "{:?}", world.cell.processes());
    let store = installed.folder().join("home/.local/share/cloister");
    let mut new = before.new_since(installed.folder(), Duration::from_secs(3)).unwrap();
    new.retain(|fact| !fact.contains(&store.display().to_string()));
    assert_eq!(new, Vec::<String>::new());
}

fn egress() -> [String; 4] {
    ["--network", "egress", "--dns", &OUTSIDE.to_string()].map(str::to_owned)
}

#[test]
fn steps_reach_what_is_outside_and_not_the_machine() {
    let (site, world) = (Site::new(), World::new(vec![b'x'; PAGE]));
    let options = egress();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let begun = Instant::now();
    let built = world.output(build(&site, "with", &dockerfile(), &options));
    eprintln!("with: {:.1?}", begun.elapsed());
    assert!(built.status.success() && world.asked() == 0, "{} {}", world.asked(), text(&built));
    assert_eq!(world.cell.find("passt").unwrap(), []);

    // The same steps, without.
    let begun = Instant::now();
    let refused = world.output(build(&site, "without", &dockerfile(), &["--no-cache"]));
    eprintln!("without: {:.1?}", begun.elapsed());
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("\ncloister: NoNetwork: "), "{}", text(&refused));
}

#[test]
fn a_network_that_ends_is_told_and_one_whose_build_ends_is_gone() {
    let (site, world) = (Site::new(), World::new(Vec::new()));
    let options = egress();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    for (victim, says) in [("passt", "passt ended with signal 9"), ("cloister", "")] {
        let before = Leftovers::below(site.lab.root()).unwrap();
        let mut child =
            world.spawn(build(&site, "long", "FROM base\nRUN echo begun; sleep 1000\n", &options));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with(" begun")));
        let rest = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>().join("\n"));
        let words = if victim == "passt" { "--outbound-if4=out" } else { " build --progress" };
        let found = world.cell.find(words).unwrap();
        world.cell.kill(found.first().unwrap().pid, "KILL").unwrap();
        let begun = Instant::now();
        let status = child.wait().unwrap();
        let said = rest.join().unwrap();
        assert!(!status.success() && said.contains(says), "{status}: {said}");
        let gone = || Ok(world.cell.processes()?.is_empty().then_some(()));
        wait_for("the end of everything", Duration::from_secs(3), gone).unwrap();
        eprintln!("{victim} killed: over after {:.1?}", begun.elapsed());
        if victim == "passt" {
            assert_eq!(site.left(&before), Vec::<String>::new());
        }
    }
}
