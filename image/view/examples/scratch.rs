//! Makes an empty scratch disk: `scratch FILE BYTES`.
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let f = std::fs::File::options().read(true).write(true).create(true).open(&a[1]).unwrap();
    let t = std::time::Instant::now();
    cloister_view::scratch::create(&f, a[2].parse().unwrap()).unwrap();
    println!("{:?}", t.elapsed());
}
