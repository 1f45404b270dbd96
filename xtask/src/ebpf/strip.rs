//! Takes out of an object what only a debugger would read. BTF stays: the loader and the verifier's messages need it.

use anyhow::{Context, Result};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// The object without its DWARF sections, their relocations, and the symbols that named them.
pub fn debug_information(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the linker's output is no ELF object")?;
    for section in &mut builder.sections {
        section.delete = is_debug(section.name.as_slice());
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections and of symbols in one table; the builder writes one for each.
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let names = builder.sections.add();
        names.name = b".shstrtab"[..].into();
        names.sh_type = SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("cannot write the stripped object")?;
    Ok(stripped)
}

fn is_debug(section: &[u8]) -> bool {
    let name = section.strip_prefix(b".rel").filter(|rest| rest.starts_with(b".")).unwrap_or(section);
    name.starts_with(b".debug_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dwarf_goes() {
        for gone in [".debug_info", ".rel.debug_info", ".debug_str"] {
            assert!(is_debug(gone.as_bytes()), "{gone}");
        }
        for kept in [".BTF", ".BTF.ext", ".rel.BTF", ".reliter/task", "iter/task", "maps", ".rodata", ".symtab", ".rel"] {
            assert!(!is_debug(kept.as_bytes()), "{kept}");
        }
    }
}
