//! The shared libraries of this process, as the dynamic linker knows them.

use std::ffi::CStr;

use libc::{Elf64_Phdr, c_int, c_void, dl_phdr_info, size_t};

/// Entries of a library's dynamic section: its end, its table of strings, and how long that is.
const DT_NULL: u64 = 0;
const DT_STRTAB: u64 = 5;
const DT_STRSZ: u64 = 10;

/// An entry of a library's dynamic section (`Elf64_Dyn`).
#[repr(C)]
struct Dyn {
    tag: u64,
    value: u64,
}

struct Search<'a> {
    symbol: &'a [u8],
    is_left_out: &'a dyn Fn(&str) -> bool,
    is_found: bool,
}

/// Whether a library names a symbol, among those that it wants or has. Only the tables of names are read, which the linker
/// has read before; libraries whose file name `is_left_out` says so of are not looked at.
pub fn any_that_wants(symbol: &str, is_left_out: impl Fn(&str) -> bool) -> bool {
    let mut search = Search { symbol: symbol.as_bytes(), is_left_out: &is_left_out, is_found: false };
    // SAFETY: `look` keeps to the signature; `search` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
    search.is_found
}

unsafe extern "C" fn look(info: *mut dl_phdr_info, _size: size_t, search: *mut c_void) -> c_int {
    // SAFETY: the linker gives a valid description, and what was given to it.
    let (info, search) = unsafe { (&*info, &mut *search.cast::<Search<'_>>()) };
    // SAFETY: a C string of the linker's; empty for the program itself.
    let path = unsafe { CStr::from_ptr(info.dlpi_name) }.to_string_lossy();
    let name = path.rsplit('/').next().unwrap_or_default();
    // The program itself, and what the kernel has put there, have no file.
    if name.is_empty() || !name.contains(".so") || (search.is_left_out)(name) {
        return 0;
    }
    // SAFETY: the library stays loaded during the call.
    if let Some(names) = unsafe { names(info) } {
        search.is_found = memchr::memmem::find(names, search.symbol).is_some();
    }
    c_int::from(search.is_found)
}

/// The table of a library's names of symbols.
///
/// # Safety
/// The library is loaded, and stays so.
unsafe fn names<'a>(info: &dl_phdr_info) -> Option<&'a [u8]> {
    // SAFETY: the linker's own description of what it has mapped.
    let headers: &[Elf64_Phdr] = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let dynamic = headers.iter().find(|header| header.p_type == libc::PT_DYNAMIC)?;
    let mut entry = (info.dlpi_addr + dynamic.p_vaddr) as *const Dyn;
    let (mut table, mut size) = (0, 0);
    // SAFETY: the section ends with an entry that says so.
    unsafe {
        while (*entry).tag != DT_NULL {
            match (*entry).tag {
                DT_STRTAB => table = (*entry).value,
                DT_STRSZ => size = (*entry).value,
                _ => {}
            }
            entry = entry.add(1);
        }
    }
    if table == 0 {
        return None;
    }
    // Some linkers note the address, others its distance from where the library is.
    let address = if table < info.dlpi_addr { info.dlpi_addr + table } else { table };
    // SAFETY: the library's own table, so long as it says.
    Some(unsafe { std::slice::from_raw_parts(address as *const u8, size as usize) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_names_what_it_wants() {
        // Of the C library, which is always there.
        assert!(any_that_wants("pthread_atfork", |_| false) || any_that_wants("malloc", |_| false));
        assert!(!any_that_wants("malloc", |_| true), "none is looked at");
        assert!(!any_that_wants("no_library_has_a_symbol_of_this_name", |_| false));
    }
}
