//! A Rust program without any crate: counts signals, tells how it was started, ends as it is told.
//!
//! Compiled by the tests with rustc alone. What comes on standard input is done line by line.

// std's own start would set SIGPIPE, and so hide how it was inherited.
#![no_main]

use std::env;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn write(descriptor: i32, text: *const u8, length: usize) -> isize;
    fn kill(pid: i32, number: i32) -> i32;
}

/// All that `spanweld run` passes on but SIGCONT.
const COUNTED: [i32; 7] = [1, 2, 3, 10, 12, 15, 28];

/// A line for each signal, by nothing that a handler must not call.
extern "C" fn say_signal(number: i32) {
    let digits = [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
    let line = [
        b's', b'i', b'g', b'n', b'a', b'l', b' ', digits[0], digits[1], b'\n',
    ];
    unsafe { write(1, line.as_ptr(), line.len()) };
}

/// Everything that an agent before it could have changed.
fn show() {
    for argument in env::args() {
        println!("argument {argument}");
    }
    let mut variables: Vec<_> = env::vars().collect();
    variables.sort();
    for (name, value) in variables {
        println!("variable {name}={value}");
    }
    println!("folder {}", env::current_dir().unwrap().display());
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    for line in status.lines() {
        let kept = [
            "Uid:",
            "Gid:",
            "Groups:",
            "SigBlk:",
            "SigIgn:",
            "SigCgt:",
            "SigPnd:",
            "NoNewPrivs:",
        ];
        if kept.iter().any(|name| line.starts_with(name)) {
            println!("{line}");
        }
    }
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    println!("{limits}");
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    println!("nice {} policy {}", fields[16], fields[38]);
    let mut descriptors: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_string_lossy()
                .parse()
                .unwrap()
        })
        .collect();
    descriptors.sort();
    println!("descriptors {descriptors:?}");
}

#[unsafe(no_mangle)]
extern "C" fn main(_count: i32, _arguments: *const *const u8) -> i32 {
    let arguments: Vec<String> = env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("show") => show(),
        Some("cat") => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).unwrap();
            print!("out {text}");
            io::stdout().flush().unwrap();
            eprint!("err {text}");
        }
        _ => obey(),
    }
    0
}

/// Until standard input ends, or a line says so.
fn obey() {
    for number in COUNTED {
        unsafe { signal(number, say_signal) };
    }
    println!("waiting");
    for line in io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["exit", code] => exit(code.parse().unwrap()),
            ["kill", number] => unsafe {
                kill(std::process::id() as i32, number.parse().unwrap());
            },
            ["exec", program, rest @ ..] => {
                let error = Command::new(program).args(rest).exec();
                println!("not executed: {error}");
            }
            _ => println!("what is {line:?}?"),
        }
    }
}
