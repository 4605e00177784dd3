#compdef lorasweep
# zsh completion of lorasweep:  source <(lorasweep completion zsh)
_lorasweep() {
    local -a found
    found=("${(@f)$("${(Q)words[1]}" __complete "${(@Q)words[2,CURRENT]}" 2> /dev/null)}")
    found=("${(@)found:#}")
    if (( ! $#found )); then
        compset -P '*='                                     # the path after data.train=
        _files
        return
    fi
    compadd -S '' -- "${(@M)found:#*[=.]}"
    compadd -- "${(@)found:#*[=.]}"
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _lorasweep lorasweep
