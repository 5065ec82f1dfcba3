use super::*;

fn image() -> ImageConfig {
    ImageConfig {
        entrypoint: strings(&["/entry"]),
        cmd: strings(&["serve", "--fast"]),
        env: strings(&["PATH=/bin", "A=image"]),
        working_dir: "/srv".to_owned(),
        ..ImageConfig::default()
    }
}

fn args(wishes: &Wishes) -> Vec<String> {
    process(&image(), wishes).unwrap().args().clone().unwrap()
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn the_image_command_follows_its_entrypoint() {
    assert_eq!(args(&Wishes::default()), ["/entry", "serve", "--fast"]);
}

#[test]
fn a_given_command_replaces_the_image_command_only() {
    assert_eq!(
        args(&Wishes { command: strings(&["ls", "-l"]), ..Wishes::default() }),
        ["/entry", "ls", "-l"]
    );
}

#[test]
fn a_given_entrypoint_drops_the_image_command() {
    let wishes = Wishes { entrypoint: Some("/bin/sh".to_owned()), ..Wishes::default() };
    assert_eq!(args(&wishes), ["/bin/sh"]);
    let wishes = Wishes { entrypoint: Some(String::new()), command: strings(&["ls"]), ..Wishes::default() };
    assert_eq!(args(&wishes), ["ls"]);
}

#[test]
fn no_command_at_all_is_an_error() {
    assert!(matches!(process(&ImageConfig::default(), &Wishes::default()), Err(Error::NoCommand)));
}

#[test]
fn the_last_value_of_a_variable_wins() {
    let wishes = Wishes { env: strings(&["A=user", "B=1"]), hostname: "box".to_owned(), ..Wishes::default() };
    let env = process(&image(), &wishes).unwrap().env().clone().unwrap();
    assert_eq!(env, ["PATH=/bin", "HOSTNAME=box", "A=user", "B=1"]);
}

#[test]
fn a_relative_working_folder_is_refused() {
    let wishes = Wishes { cwd: Some("srv".to_owned()), ..Wishes::default() };
    assert!(matches!(process(&image(), &wishes), Err(Error::WorkingDir(_))));
}

#[test]
fn a_plain_container_is_restricted_and_a_privileged_one_is_not() {
    let plain = build(&image(), &Wishes::default()).unwrap();
    let linux = plain.linux().clone().unwrap();
    assert!(linux.seccomp().is_some());
    assert!(linux.masked_paths().clone().unwrap().contains(&"/proc/kcore".to_owned()));
    let sys =
        plain.mounts().clone().unwrap().into_iter().find(|m| m.destination().as_os_str() == "/sys").unwrap();
    assert!(sys.options().clone().unwrap().contains(&"ro".to_owned()));

    let open = build(&image(), &Wishes { privileged: true, ..Wishes::default() }).unwrap();
    let linux = open.linux().clone().unwrap();
    assert!(linux.seccomp().is_none());
    assert!(linux.masked_paths().clone().unwrap_or_default().is_empty());
    assert!(linux.devices().clone().unwrap().iter().any(|d| d.path().as_os_str() == "/dev/fuse"));
}

#[test]
fn limits_reach_the_cgroup() {
    let wishes = Wishes { memory_bytes: Some(64 << 20), cpu_millis: Some(1500), ..Wishes::default() };
    let resources = build(&image(), &wishes).unwrap().linux().clone().unwrap().resources().clone().unwrap();
    assert_eq!(resources.memory().unwrap().limit(), Some(64 << 20));
    assert_eq!(resources.cpu().clone().unwrap().quota(), Some(150_000));
}

#[test]
fn the_specification_survives_json() {
    let spec = build(&image(), &Wishes::default()).unwrap();
    let json = serde_json::to_vec(&spec).unwrap();
    assert_eq!(serde_json::from_slice::<Spec>(&json).unwrap(), spec);
}
