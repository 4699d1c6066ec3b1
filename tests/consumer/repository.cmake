# Makes REPOSITORY, with the working tree of SOURCE - what isn't committed, too - as the one commit of its branch main.
file(REMOVE_RECURSE "${REPOSITORY}" "${OLD_CLONE}")
function(git)
  execute_process(COMMAND "${GIT}" --git-dir "${REPOSITORY}" --work-tree "${SOURCE}" ${ARGN}
                  WORKING_DIRECTORY "${SOURCE}" COMMAND_ERROR_IS_FATAL ANY)
endfunction()
execute_process(COMMAND "${GIT}" init --quiet --bare --initial-branch main "${REPOSITORY}" COMMAND_ERROR_IS_FATAL ANY)
git(add --all)
git(-c user.name=test -c user.email=test@localhost -c commit.gpgsign=false commit --quiet --message "the working tree")
