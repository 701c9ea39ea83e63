//! The layout of the structs against the numbers of the header, and, with `cc` and the header of a plugin's wheel,
//! against the header itself.

use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::path::PathBuf;
use std::process::Command;

use super::arguments::{ClientCreate, ExecutableGetCompiledMemoryStats, LAYOUTS, LoadedExecutableExecute};
use super::custom_call::{CallFrame, FfiExtension, RegisterHandlerArguments};
use super::{ApiHead, Arguments as _, ExecuteOptions, MemoryLayout, NamedValue, Program};

#[test]
fn sizes_are_those_of_version_0_81() {
    assert_eq!(size_of::<ApiHead>(), 40);
    assert_eq!(size_of::<NamedValue>(), 56);
    assert_eq!(size_of::<Program>(), 48);
    assert_eq!(size_of::<MemoryLayout>(), 80);
    assert_eq!(size_of::<ExecuteOptions>(), 112);
    assert_eq!(size_of::<FfiExtension>(), 48);
    assert_eq!(offset_of!(RegisterHandlerArguments, traits), 48);
    assert_eq!(size_of::<CallFrame>(), 40 + 40 + 40 + 48);
    assert_eq!(ClientCreate::STRUCT_SIZE, 88);
    assert_eq!(LoadedExecutableExecute::STRUCT_SIZE, 80);
    assert_eq!(ExecutableGetCompiledMemoryStats::STRUCT_SIZE, 112);
}

/// The header: `GEMMA4CTL_PJRT_HEADER`, or beside the plugin that `GEMMA4CTL_PJRT_CPU` names, as in its wheel.
fn header() -> Option<PathBuf> {
    let named = std::env::var_os("GEMMA4CTL_PJRT_HEADER").map(PathBuf::from);
    let beside = || Some(PathBuf::from(std::env::var_os("GEMMA4CTL_PJRT_CPU")?).with_file_name("include/pjrt_c_api.h"));
    named.or_else(beside).filter(|path| path.is_file())
}

#[test]
fn every_field_lies_where_the_header_puts_it() {
    let Some(header) = header() else {
        println!("skipped: no pjrt_c_api.h; name one in GEMMA4CTL_PJRT_HEADER");
        return;
    };
    let mut source = format!("#include \"{}\"\n#include <stdio.h>\nint main(void) {{\n", header.display());
    let mut expected = String::new();
    for (function, slot, fields) in LAYOUTS {
        let arguments = format!("{function}_Args");
        let _ = writeln!(
            source,
            "printf(\"{function} %zu\\n\", (offsetof(PJRT_Api, {function}) - offsetof(PJRT_Api, PJRT_Error_Destroy)) / 8);"
        );
        let _ = writeln!(expected, "{function} {slot}");
        for (field, offset, size) in *fields {
            let field = field.trim_end_matches('_');
            let _ = writeln!(
                source,
                "printf(\"  {field} %zu %zu\\n\", offsetof(struct {arguments}, {field}), \
                 sizeof(((struct {arguments}*)0)->{field}));"
            );
            let _ = writeln!(expected, "  {field} {offset} {size}");
        }
        let size = fields.last().map_or(0, |field| field.1 + field.2);
        let _ = writeln!(source, "printf(\"  = %d\\n\", {arguments}_STRUCT_SIZE);");
        let _ = writeln!(expected, "  = {size}");
    }
    source.push_str("return 0;\n}\n");
    let folder = tempfile::tempdir().unwrap();
    let (file, program) = (folder.path().join("layout.c"), folder.path().join("layout"));
    std::fs::write(&file, source).unwrap();
    let compiled = match Command::new("cc").arg("-o").arg(&program).arg(&file).output() {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: no C compiler: {error}");
            return;
        }
    };
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let printed = Command::new(&program).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&printed.stdout), expected);
}
